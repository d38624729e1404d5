"""The covariances that respect the shape of the parameters: `isouq.uncertainty` needs no gradients for them."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isouq import _checks
from isouq.gradnorm import Form
from isouq.gradnorm._forms import quadratic


@runtime_checkable
class Covariance(Protocol):
    """What `isouq.uncertainty(..., covariance=...)` asks of a covariance.

    A `StructuredCovariance` is applied without forming gradients.
    """

    def quadratic(self, grads: Any) -> Float[Array, " batch"]:
        """gᵀΣg for a batch: `grads` is a pytree like the parameters with a leading batch axis."""
        ...


class StructuredCovariance:
    """A covariance that is given by one `isouq.gradnorm.Form` for each leaf; subclass and define `forms`."""

    def forms(self, params: Any) -> list[Form]:
        """One `Form` for each leaf of params; raises where the shapes do not fit."""
        raise NotImplementedError

    def quadratic(self, grads: Any) -> Float[Array, " batch"]:
        """gᵀΣg for each gradient of the batch, leaves `[batch, ...]`; the form is applied to the gradient itself."""
        if not isinstance(self, Identity):
            _checks.real_leaves("grads", grads, " with a covariance other than Identity")
        forms = self.forms(jax.tree.map(lambda g: g[0], grads))

        return jax.vmap(lambda grad: quadratic(grad, forms))(grads)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Identity(StructuredCovariance):
    """Σ = scale · I, so that gᵀΣg = scale · ‖g‖², over real and imaginary parts. The paper's U_E has scale 1."""

    scale: Any = 1.0  # a float or a scalar array; Any, for JAX rebuilds pytrees around placeholders

    def forms(self, params: Any) -> list[Form]:
        """Scale · I for every leaf."""
        return [Form(self.scale) for _ in jax.tree.leaves(params)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagonal(StructuredCovariance):
    """Σ = diag(variances): gᵀΣg = Σ_i variances_i g_i².

    variances: a pytree like the parameters, entries ≥ 0 (units: parameter²). One position of a weight
    `[C, F]` costs C·F multiplications; many positions form the gradient of one weight at a time.
    `clipped` is the share of curvatures that had to be lifted to make this a covariance (see `laplace`).
    """

    variances: Any
    clipped: Any = 0.0

    def forms(self, params: Any) -> list[Form]:
        """The variances of every leaf."""
        pairs = _like(params, self.variances, "variances")
        for leaf, variances in pairs:
            _expect("variances", jnp.shape(variances), jnp.shape(leaf))
        return [Form(diagonal=jnp.asarray(variances)) for _, variances in pairs]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kronecker(StructuredCovariance):
    """Block-diagonal Σ with a block A Aᵀ ⊗ B Bᵀ for every leaf: gᵀΣg = Σ ‖Aᵀ G B‖².

    factors: a pytree like the parameters with a pair `(A, B)` for each leaf. G is the leaf's gradient
    `[C, F]`, F its last axis and C all others together (1 for a vector); A is `[C, r]`, B `[F, s]`. A factor
    with one axis, `[C]` or `[F]`, is a diagonal matrix: the rows of a look-up table have one.
    variances: none, or a pytree like the parameters with `[r, s]` for each leaf: the block is then
    (A ⊗ B) diag(v) (A ⊗ B)ᵀ and gᵀΣg = Σ_ij v_ij (Aᵀ G B)_ij². KFAC's posterior with its prior is of this
    kind, A and B being the eigenvectors of the two factors. One position costs C·r + F·s multiplications.
    """

    factors: Any
    variances: Any = None

    def forms(self, params: Any) -> list[Form]:
        """The two factors, and the variances, of every leaf."""
        forms = []
        pairs = _like(params, self.factors, "factors")
        of_leaves = [None for _ in pairs] if self.variances is None else _like(params, self.variances, "variances")
        for (leaf, pair), variances in zip(pairs, of_leaves, strict=True):
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(jnp.ndim(f) in (1, 2) for f in pair)):
                raise ValueError(
                    f"factors holds {_show(pair)} for a leaf; expected a pair of matrices (A, B), or vectors for "
                    "diagonal ones"
                )
            last = jnp.shape(leaf)[-1] if jnp.ndim(leaf) else 1
            rows = (jnp.size(leaf) // last if last else 0, last)
            _expect("rows of factors", tuple(jnp.shape(f)[0] for f in pair), rows)
            diagonal = None
            if variances is not None:
                _expect("variances", jnp.shape(variances[1]), tuple(jnp.shape(f)[-1] for f in pair))
                diagonal = jnp.asarray(variances[1])
            forms.append(Form(kronecker=(jnp.asarray(pair[0]), jnp.asarray(pair[1])), diagonal=diagonal))
        return forms


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank(StructuredCovariance):
    """Σ = scale · I + U diag(weights) Uᵀ: gᵀΣg = scale · ‖g‖² + Σ_k weights_k (u_k·g)².

    directions: a pytree like the parameters whose leaves have a leading axis K, u_k = leaf[k].
    scale: a number, or a pytree of numbers like the parameters, one a leaf. weights `[K]`: 1 by default (then
    u_k is scaled: for an eigenpair, √eigenvalue · eigenvector); of any sign, as long as Σ stays a covariance:
    a posterior that the data narrowed in K directions has negative ones, and gᵀΣg is then a difference, with
    rounding of about 2 · 10⁻⁷ · scale · ‖g‖² in float32; what rounding makes negative is 0. Costs K multiplications a
    parameter, as K forward passes.
    """

    directions: Any
    scale: Any = 0.0
    weights: Any = None

    def forms(self, params: Any) -> list[Form]:
        """The scale and the part of U that belong to every leaf."""
        pairs = _like(params, self.directions, "directions")
        ranks = {jnp.shape(u)[:1] for _, u in pairs}
        if len(ranks) != 1 or ranks == {()}:
            raise ValueError(
                f"directions has leading axes {sorted(ranks)}; expected one axis K, the same for all leaves"
            )
        for leaf, u in pairs:
            _expect("directions", jnp.shape(u)[1:], jnp.shape(leaf))
        weights = None if self.weights is None else jnp.asarray(self.weights)
        if weights is not None and (weights.shape,) != tuple(ranks):
            raise ValueError(f"weights has shape {weights.shape}; expected {ranks.pop()}, one for each direction")
        one = isinstance(self.scale, (int, float)) or hasattr(self.scale, "dtype")
        scales = [self.scale] * len(pairs) if one else [scale for _, scale in _like(params, self.scale, "scale")]
        return [
            Form(scale, directions=jnp.asarray(u), weights=weights) for scale, (_, u) in zip(scales, pairs, strict=True)
        ]


class _Pair(NamedTuple):
    leaf: Any
    other: Any


def _like(params: Any, tree: Any, name: str) -> list[tuple[Any, Any]]:
    """Leaves of params, each with what stands in its place in another tree."""
    try:
        return jax.tree.leaves(jax.tree.map(_Pair, params, tree), is_leaf=lambda node: isinstance(node, _Pair))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a pytree like the parameters; build it with jax.tree.map over them") from error


def _expect(name: str, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if given != expected:
        raise ValueError(f"{name} has shape {given} for a leaf that asks for {expected}; build it for the same model")


def _show(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"

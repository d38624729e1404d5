"""The covariances with a form for each leaf of the parameters, for which `isouq.uncertainty` needs no gradients."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from isouq import _checks
from isouq.covariance._draws import DrawDeviation, SampleMixin, standard_normal
from isouq.gradnorm import Form
from isouq.gradnorm._forms import quadratic

_SAME = "the same model, with the same select"


@runtime_checkable
class Covariance(Protocol):
    """The interface of a covariance of your own, for which `isouq.uncertainty` forms the gradients."""

    def quadratic(self, grads: Any) -> Float[Array, " batch"]:
        """Return gᵀΣg of each gradient: `grads` is a pytree like the parameters with a leading batch axis."""
        ...


class StructuredCovariance(SampleMixin):
    """A covariance that is one `isouq.gradnorm.Form` for each leaf, applied without forming gradients.

    Subclasses define `forms`, `deviation` and `scaled`.
    """

    def forms(self, params: Any) -> list[Form]:
        """Return one `Form` for each leaf of params; raise ValueError where the shapes do not fit."""
        raise NotImplementedError

    def quadratic(self, grads: Any) -> Float[Array, " batch"]:
        """Return gᵀΣg of each gradient of a batch, leaves `[batch, ...]`."""
        if not isinstance(self, Identity):
            _checks.real_leaves("grads", grads, " with a covariance other than Identity")
        forms = self.forms(jax.tree.map(lambda g: g[0], grads))

        return jax.vmap(lambda grad: quadratic(grad, forms))(grads)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Identity(StructuredCovariance):
    """Σ = scale · I, so that gᵀΣg = scale · ‖g‖², over real and imaginary parts. The paper's U_E has scale 1."""

    scale: Any = 1.0  # a float or a scalar array; Any, because JAX puts placeholders into pytrees

    def forms(self, params: Any) -> list[Form]:
        """Return scale · I for every leaf."""
        return [Form(self.scale) for _ in jax.tree.leaves(params)]

    def deviation(self, params: Any) -> DrawDeviation:
        """Return the function from a key to one draw of N(0, scale · I)."""
        return lambda key: jax.tree.map(lambda noise: jnp.sqrt(self.scale) * noise, standard_normal(key, params))

    def scaled(self, factor: Any) -> "Identity":
        """Return factor · Σ."""
        return Identity(factor * self.scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagonal(StructuredCovariance):
    """Σ = diag(variances): gᵀΣg = Σ_i variances_i g_i².

    variances: a pytree like the parameters with entries ≥ 0 (units: parameter²).
    clipped: share of curvatures that were lifted to make Σ a covariance (see `laplace`).

    Cost: C·F multiplications for each position of a weight `[C, F]`. Where a weight is used at many positions, its
    gradient is formed, one weight at a time.
    """

    variances: Any
    clipped: Any = 0.0

    def forms(self, params: Any) -> list[Form]:
        """Return the variances of every leaf."""
        pairs = _pair_leaves(params, self.variances, "variances")
        for leaf, variances in pairs:
            _check_shape("variances", jnp.shape(variances), jnp.shape(leaf))
        return [Form(diagonal=jnp.asarray(variances)) for _, variances in pairs]

    def deviation(self, params: Any) -> DrawDeviation:
        """Return the function from a key to one draw of N(0, diag(variances))."""
        self.forms(params)
        return lambda key: jax.tree.map(
            lambda noise, variances: jnp.sqrt(variances) * noise, standard_normal(key, params), self.variances
        )

    def scaled(self, factor: Any) -> "Diagonal":
        """Return factor · Σ."""
        return replace(self, variances=jax.tree.map(lambda leaf: factor * leaf, self.variances))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kronecker(StructuredCovariance):
    """Block-diagonal Σ with a block A Aᵀ ⊗ B Bᵀ for every leaf: gᵀΣg = Σ ‖Aᵀ G B‖².

    G is the gradient of a leaf as a matrix `[C, F]`: F is its last axis, and C all others together (1 for a vector).

    factors: a pytree like the parameters with a pair `(A, B)` for each leaf, A `[C, r]` and B `[F, s]`. A factor with
        one axis, `[C]` or `[F]`, is a diagonal matrix, as for the rows of a look-up table.
    variances: None, or a pytree like the parameters with v `[r, s]` for each leaf. The block is then
        (A ⊗ B) diag(v) (A ⊗ B)ᵀ and gᵀΣg = Σ_ij v_ij (Aᵀ G B)_ij². The posterior of KFAC with its prior is of this
        kind; A and B are then the eigenvectors of the two factors.

    Cost: C·r + F·s multiplications for each position of a weight.
    """

    factors: Any
    variances: Any = None

    def forms(self, params: Any) -> list[Form]:
        """Return the two factors, and the variances, of every leaf."""
        forms = []
        pairs = _pair_leaves(params, self.factors, "factors")
        if self.variances is None:
            variances = [None for _ in pairs]
        else:
            variances = [v for _, v in _pair_leaves(params, self.variances, "variances")]
        for (leaf, pair), v in zip(pairs, variances, strict=True):
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(jnp.ndim(f) in (1, 2) for f in pair)):
                raise ValueError(
                    f"factors holds {_checks.shape_or_type(pair)} for a leaf; expected a pair of matrices (A, B), "
                    "or vectors for diagonal ones"
                )
            last = jnp.shape(leaf)[-1] if jnp.ndim(leaf) else 1
            rows = (jnp.size(leaf) // last if last else 0, last)
            _check_shape("rows of factors", tuple(jnp.shape(f)[0] for f in pair), rows)
            diagonal = None
            if v is not None:
                _check_shape("variances", jnp.shape(v), tuple(jnp.shape(f)[-1] for f in pair))
                diagonal = jnp.asarray(v)
            forms.append(Form(kronecker=(jnp.asarray(pair[0]), jnp.asarray(pair[1])), diagonal=diagonal))
        return forms

    def deviation(self, params: Any) -> DrawDeviation:
        """Return the function from a key to one draw of N(0, Σ): A (√v ∘ E) Bᵀ for each leaf, with E ~ N(0, I)."""
        leaves, treedef = jax.tree.flatten(params)
        forms = self.forms(params)

        def draw(key: Array) -> Any:
            keys = jax.random.split(key, len(leaves))
            blocks = [_draw_block(*args) for args in zip(keys, leaves, forms, strict=True)]
            return jax.tree.unflatten(treedef, blocks)

        return draw

    def scaled(self, factor: Any) -> "Kronecker":
        """Return factor · Σ."""
        if self.variances is not None:
            return replace(self, variances=jax.tree.map(lambda leaf: factor * leaf, self.variances))
        factors = jax.tree.map(
            lambda pair: (jnp.sqrt(factor) * pair[0], pair[1]),
            self.factors,
            is_leaf=lambda node: (
                isinstance(node, (tuple, list)) and len(node) == 2 and all(hasattr(part, "shape") for part in node)
            ),
        )
        return replace(self, factors=factors)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank(StructuredCovariance):
    """Σ = scale · I + U diag(weights) Uᵀ: gᵀΣg = scale · ‖g‖² + Σ_k weights_k (u_k·g)².

    directions: a pytree like the parameters whose leaves have a leading axis K, with u_k = leaf[k].
    scale: a number, or a pytree like the parameters with a number for each leaf.
    weights: `[K]`, by default 1; u_k of an eigenpair is then √eigenvalue · eigenvector. They may be negative as long as
        Σ is a covariance, as for a posterior that the data narrow in K directions. gᵀΣg is then a difference with a
        rounding error of about 2 · 10⁻⁷ · scale · ‖g‖² in float32, and 0 where rounding makes it negative.

    Cost: K multiplications for each parameter, like K forward passes.
    """

    directions: Any
    scale: Any = 0.0
    weights: Any = None

    def forms(self, params: Any) -> list[Form]:
        """Return the scale and the part of U of every leaf."""
        pairs = _pair_leaves(params, self.directions, "directions")
        ranks = {jnp.shape(u)[:1] for _, u in pairs}
        if len(ranks) != 1 or ranks == {()}:
            raise ValueError(
                f"directions has leading axes {sorted(ranks)}; expected one axis K, the same for all leaves"
            )
        for leaf, u in pairs:
            _check_shape("directions", jnp.shape(u)[1:], jnp.shape(leaf))
        weights = None if self.weights is None else jnp.asarray(self.weights)
        if weights is not None and (weights.shape,) != tuple(ranks):
            raise ValueError(f"weights has shape {weights.shape}; expected {ranks.pop()}, one for each direction")
        scale = jax.tree.map(lambda _: self.scale, params) if is_number(self.scale) else self.scale
        scales = [leaf_scale for _, leaf_scale in _pair_leaves(params, scale, "scale")]
        return [
            Form(scale, directions=jnp.asarray(u), weights=weights) for scale, (_, u) in zip(scales, pairs, strict=True)
        ]

    def deviation(self, params: Any) -> DrawDeviation:
        """Return the function from a key to one draw of N(0, Σ).

        With S = √scale, the weights w⁺ ≥ 0 and w⁻ < 0, and the thin decomposition S⁻¹U = QR, it is
        S (I + QMQᵀ)^½ ε + U √w⁺ ε′, M = R diag(w⁻) Rᵀ, where ε and ε′ are independent and standard normal. The
        decomposition, of K² multiplications for each parameter, is made once, and only where there are weights.
        """
        forms = self.forms(params)
        rank = forms[0].directions.shape[0]  # type: ignore[union-attr]
        columns = jnp.concatenate([form.directions.reshape(rank, -1) for form in forms], axis=1).T  # type: ignore[union-attr]
        sizes = [jnp.size(leaf) for leaf in jax.tree.leaves(params)]
        sd = jnp.concatenate([jnp.full(size, jnp.sqrt(form.scale)) for size, form in zip(sizes, forms, strict=True)])
        weights = forms[0].weights
        basis = shrinkage = None
        if weights is not None:
            relative = columns * jnp.where(sd > 0, 1 / jnp.where(sd > 0, sd, 1), 0)[:, None]
            q, r = jnp.linalg.qr(relative)
            values, vectors = jnp.linalg.eigh((r * jnp.minimum(weights, 0)[None]) @ r.T)
            basis, shrinkage = q @ vectors, jnp.sqrt(jnp.maximum(1 + values, 0)) - 1
        roots = jnp.ones(rank) if weights is None else jnp.sqrt(jnp.maximum(weights, 0))

        def draw(key: Array) -> Any:
            of_all, of_directions = jax.random.split(key)
            noise, unravel = ravel_pytree(standard_normal(of_all, params))
            if basis is not None:
                noise = noise + basis @ (shrinkage * (basis.T @ noise))
            widened = columns @ (roots * jax.random.normal(of_directions, (rank,), columns.dtype))
            return unravel((sd * noise + widened).astype(noise.dtype))

        return draw

    def scaled(self, factor: Any) -> "LowRank":
        """Return factor · Σ."""
        rank = jax.tree.leaves(self.directions)[0].shape[0]
        weights = jnp.ones(rank) if self.weights is None else self.weights
        scale = jax.tree.map(lambda s: factor * s, self.scale)
        return replace(self, scale=scale, weights=factor * jnp.asarray(weights))


def _draw_block(key: Array, leaf: Any, form: Form) -> Array:
    """Return one draw of a leaf whose covariance is a Kronecker product."""
    left, right = form.kronecker  # type: ignore[misc]
    noise = jax.random.normal(key, (left.shape[-1], right.shape[-1]), left.dtype)
    noise = noise if form.diagonal is None else jnp.sqrt(form.diagonal) * noise
    rows = left[:, None] * noise if left.ndim == 1 else left @ noise
    return (rows * right[None] if right.ndim == 1 else rows @ right.T).reshape(jnp.shape(leaf))


def is_number(value: Any) -> bool:
    """Return whether a field is one number or array, and not a pytree of them."""
    return isinstance(value, (int, float)) or hasattr(value, "dtype")


class _Pair(NamedTuple):
    leaf: Any
    other: Any


def _pair_leaves(params: Any, tree: Any, name: str) -> list[tuple[Any, Any]]:
    """Return the leaves of params, each with what has its place in another tree."""
    try:
        pairs = jax.tree.leaves(jax.tree.map(_Pair, params, tree), is_leaf=lambda node: isinstance(node, _Pair))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a pytree like the parameters; build it with jax.tree.map over them") from error
    if any(pair.other is None for pair in pairs):
        raise ValueError(f"{name} holds None in the place of a parameter; build it for {_SAME}")
    return pairs


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(f"{name} has shape {shape} for a leaf that needs {expected}; build it for {_SAME}")

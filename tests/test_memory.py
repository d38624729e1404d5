"""`max_bytes`: the batch size that the compiled program itself says it can keep to."""

import jax
import numpy as np
import pytest

import isouq
from experiments.run.compilations import count_compilations
from isouq import _memory, _rows, _uncertainty, models
from isouq._frozen import first_row, freeze
from isouq._rows import next_shared
from isouq._uncertainty import _estimate
from isouq.gradnorm._selection import EVERYTHING

PREDICT, INIT = models.mlp(2, (64,), 3)
PARAMS = INIT(jax.random.key(0))
STATIC = ("kind", "batch_size", "engine", "selection")
XS = np.asarray(jax.random.normal(jax.random.key(1), (500, 2)))


def temporaries(batch_size):
    rows = XS if batch_size is None else np.resize(XS, (-(-len(XS) // batch_size) * batch_size, 2))
    arguments = (freeze(PREDICT, PARAMS, first_row(XS)), PARAMS, rows, None, None, "multiclass")
    return _memory.temporary_bytes(_estimate.lower(*arguments, batch_size, "jaxpr", EVERYTHING).compile())


@pytest.mark.parametrize("share", [0.1, 0.4, 2.0])
def test_scoring_keeps_to_it_and_changes_no_number(share, monkeypatch):
    limit = int(share * temporaries(None))
    chosen = []
    choose = _memory.batch_size
    monkeypatch.setattr(_memory, "batch_size", lambda *args: chosen.append(choose(*args)) or chosen[-1])
    limited = isouq.uncertainty(PREDICT, PARAMS, XS, "multiclass", max_bytes=limit)
    free = isouq.uncertainty(PREDICT, PARAMS, XS, "multiclass")
    np.testing.assert_allclose(limited.epistemic, free.epistemic, rtol=1e-5)
    (batch_size,) = chosen
    assert temporaries(batch_size) <= limit
    assert batch_size >= min(1, share) * len(XS) * 0.45  # not needlessly small
    assert (batch_size == len(XS)) == (share > 1)


def test_a_shape_takes_at_most_two_compilations_and_a_second_call_none():
    predict, init = models.mlp(2, (48,), 3)
    params, other = init(jax.random.key(0)), init(jax.random.key(1))
    isouq.uncertainty(predict, params, XS[:7], "multiclass")  # compiles what all calls share
    with count_compilations() as count:
        isouq.uncertainty(predict, params, XS, "multiclass", max_bytes=400_000)
        assert 1 <= count.programs <= 2
        isouq.uncertainty(predict, other, XS + 1, "multiclass", max_bytes=400_000)
        assert count.programs <= 2


def test_numbers_of_inputs_share_programs():
    predict, init = models.mlp(2, (40,), 3)
    params = init(jax.random.key(0))
    whole = jax.tree.map(np.asarray, isouq.uncertainty(predict, params, XS[:64], "multiclass"))

    def check(size):
        part = isouq.uncertainty(predict, params, XS[:size], "multiclass", target=whole.target[:size])
        np.testing.assert_allclose(part.epistemic, whole.epistemic[:size], rtol=1e-6)
        assert part.log_epistemic.shape == (size,)

    check(61)  # the first call with labels
    with count_compilations() as count:
        check(62)
        check(63)
    assert count.programs == 0


@pytest.mark.parametrize("size", [1, 15, 16, 17, 62, 63, 1000, 99_999])
def test_an_eighth_of_the_rows_are_added_at_most(size):
    assert size <= next_shared(size) <= size * 9 / 8
    assert len({next_shared(s) for s in range(size, 2 * size)}) <= 16


def test_by_default_a_batch_takes_a_bounded_memory(monkeypatch):
    whole = isouq.uncertainty(PREDICT, PARAMS, XS, "multiclass")
    seen = []
    lay_out_rows = _rows.map_rows
    monkeypatch.setattr(_uncertainty, "map_rows", lambda f, rows, b: seen.append(b) or lay_out_rows(f, rows, b))
    monkeypatch.setattr(_rows, "ROOM", 100_000)
    monkeypatch.setattr(_uncertainty, "_estimate", jax.jit(_estimate.__wrapped__, static_argnames=STATIC))
    parts = isouq.uncertainty(PREDICT, PARAMS, XS, "multiclass")
    assert seen
    assert seen[0] is not None
    assert temporaries(seen[0]) <= 100_000 < temporaries(None)
    np.testing.assert_allclose(parts.epistemic, whole.epistemic, rtol=1e-5)


def test_what_does_not_fit_is_said_with_what_would():
    with pytest.raises(ValueError, match=r"max_bytes is 10, but one input needs [\d,]+ bytes.*grad_sq_norm_probes"):
        isouq.uncertainty(PREDICT, INIT(jax.random.key(0)), XS, "multiclass", max_bytes=10)


def test_it_is_refused_under_jit_and_beside_a_batch_size():
    params = INIT(jax.random.key(0))
    with pytest.raises(ValueError, match=r"max_bytes was given under jax\.jit"):
        jax.jit(lambda xs: isouq.uncertainty(PREDICT, params, xs, "multiclass", max_bytes=10**9))(XS)
    with pytest.raises(ValueError, match="batch_size and max_bytes were both given"):
        isouq.uncertainty(PREDICT, params, XS, "multiclass", batch_size=3, max_bytes=10**9)
    with pytest.raises(ValueError, match="max_bytes is 0; expected a whole number"):
        isouq.uncertainty(PREDICT, params, XS, "multiclass", max_bytes=0)

"""`max_bytes`: the batch size that the compiled program itself says it can keep to."""

import jax
import numpy as np
import pytest

import isouq
from isouq import _memory, models
from isouq._uncertainty import _estimate

PREDICT, INIT = models.mlp(2, (64,), 3)
XS = jax.random.normal(jax.random.key(1), (500, 2))


def temporaries(batch_size):
    arguments = (jax.tree_util.Partial(PREDICT), INIT(jax.random.key(0)), XS, None, None, "multiclass")
    return _memory.temporary_bytes(_estimate.lower(*arguments, batch_size, "jaxpr").compile())


@pytest.mark.parametrize("share", [0.1, 0.4, 2.0])
def test_scoring_keeps_to_it_and_changes_no_number(share):
    limit = int(share * temporaries(None))
    params = INIT(jax.random.key(0))
    args = (jax.tree_util.Partial(PREDICT), params, XS, None, None, "multiclass")
    batch_size = _memory.batch_size(_estimate, args, "jaxpr", limit)
    assert (batch_size is None) == (share > 1)
    if batch_size is not None:
        assert temporaries(batch_size) <= limit
        assert batch_size >= share * len(XS) / 2  # not needlessly small
    limited = isouq.uncertainty(PREDICT, params, XS, "multiclass", max_bytes=limit)
    free = isouq.uncertainty(PREDICT, params, XS, "multiclass")
    np.testing.assert_allclose(limited.epistemic, free.epistemic, rtol=1e-5)


def test_the_search_is_done_once_for_a_shape():
    limit = temporaries(None) // 3
    isouq.uncertainty(PREDICT, INIT(jax.random.key(0)), XS, "multiclass", max_bytes=limit)
    before = _memory._batch_size.cache_info()
    isouq.uncertainty(PREDICT, INIT(jax.random.key(1)), XS + 1, "multiclass", max_bytes=limit)
    after = _memory._batch_size.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


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

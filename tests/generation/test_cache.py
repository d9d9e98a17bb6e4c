"""The KV cache between calls: what it holds is not computed again, and nothing else changes."""

import numpy as np
import pytest
from generation.chats import CONTEXT, count_positions, random_model
from hypothesis import given
from hypothesis import strategies as st

from numgpt import GPT, KVCache, Llama
from numgpt.generation import stream

MODELS = {family: random_model(family, 40) for family in (GPT, Llama)}
IDS = st.lists(st.integers(0, 39), min_size=2, max_size=20)


@pytest.fixture(params=MODELS, ids=lambda family: family.__name__)
def model(request):
    return MODELS[request.param]


@pytest.mark.parametrize("family", MODELS)
@given(IDS, IDS, st.integers(0, 19), st.integers(1, 8))
def test_streaming_on_a_cache_is_streaming_without(family, first, second, length, most):
    model = MODELS[family]
    cache = KVCache(model, 1, len(first) + most - 1)
    assert list(stream(model, first, kv_cache=cache, max_new_tokens=most)) == list(
        stream(model, first, max_new_tokens=most)
    )
    assert cache.length == len(first) + most - 1
    # Another prompt that begins as the first did.
    kept = min(length, len(first))
    cache.truncate(kept)
    assert cache.length == kept
    ids = first[:kept] + second
    cache.reserve(len(ids) + most - 1)
    assert cache.length == kept
    assert list(stream(model, ids, kv_cache=cache, max_new_tokens=most)) == list(
        stream(model, ids, max_new_tokens=most)
    )
    assert cache.length == len(ids) + most - 1


def test_only_what_is_new_is_computed(model, monkeypatch):
    cache = KVCache(model, 1, 20)
    counts = count_positions(model, monkeypatch)
    list(stream(model, list(range(9)), kv_cache=cache, max_new_tokens=3))
    assert counts == [9, 1, 1]
    cache.truncate(8)
    del counts[:]
    list(stream(model, [*range(8), 20, 21], kv_cache=cache, max_new_tokens=2))
    assert counts == [2, 1]


def test_the_logits_on_a_cut_cache_are_those_of_the_whole(model):
    ids = np.arange(12)[None]
    cache = KVCache(model, 1, 12)
    model.hidden(ids[:, ::-1], cache.view(ids.shape[1]))
    cache.truncate(0)
    model.hidden(ids[:, :7], cache.view(7))
    cache.reserve(40)
    x = model.hidden(ids[:, 7:], cache.view(ids.shape[1] - 7))
    assert np.allclose(model.unembedding.logits(x), model(ids)[0, 7:], rtol=1e-4, atol=1e-5)


def test_room_is_only_made_where_there_is_less(model):
    cache = KVCache(model, 1, 10)
    keys, values = cache.keys, cache.values
    cache.reserve(10)
    cache.reserve(3)
    assert cache.keys is keys
    assert cache.values is values
    cache.reserve(11)
    assert cache.keys.shape == cache.values.shape
    assert cache.keys.shape[3] >= 11
    assert keys.shape[3] == 10


def test_truncating_is_never_growing(model):
    cache = KVCache(model, 1, 10)
    cache.truncate(5)
    assert cache.length == 0
    with pytest.raises(ValueError, match="length=-1"):
        cache.truncate(-1)


def test_a_cache_grows_where_it_has_to(model):
    ids, cache = list(range(6)), KVCache(model, 1, 8)
    expected = list(stream(model, ids, max_new_tokens=4))
    assert list(stream(model, ids, kv_cache=cache, max_new_tokens=4)) == expected
    assert cache.length == 9


def test_a_cache_that_does_not_fit_the_call_is_refused(model):
    ids = list(range(6))
    cache = KVCache(model, 1, CONTEXT)
    model.hidden(np.array([ids]), cache.view(6))
    for prompt in (ids, ids[:3]):  # nothing new, or less than the cache holds
        with pytest.raises(ValueError, match="holds 6 positions") as error:
            stream(model, prompt, kv_cache=cache)
        assert "\n" not in str(error.value)
    assert cache.length == 6
    with pytest.raises(ValueError, match="kv_cache is for 2 sequences, there are 1"):
        list(stream(model, ids, kv_cache=KVCache(model, 2, 8), max_new_tokens=2))

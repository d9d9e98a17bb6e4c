"""The KV cache: slots of unequal lengths, sequences that join and leave, each as if alone."""

import numpy as np
import pytest
from models.references import small_model
from support import assert_close

from numgpt import KVCache, runtime

FAMILIES = ["default", "llama_grouped"]


def step(model, cache, rows, first=0, last_only=True):
    """New tokens for the slots from `first` on -> the logits after each."""
    counts = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), counts.max()), np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    turn = cache.view(counts, first, first + len(rows))
    return model.unembedding.logits(model.hidden(ids, turn, last_only))


def check(model, logits, rows):
    """The logits are those after the last of each row's tokens, from nothing."""
    for ours, row in zip(logits, rows, strict=True):
        theirs = model([row])[0, -1]
        assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_third_sequence_joins_two_that_run(name):
    """Two prompts of unequal length, a third in two chunks: each equals itself alone."""
    model = small_model(name, np.float64)
    rng = np.random.default_rng(0)
    one, two, three = (rng.integers(37, size=size).tolist() for size in (5, 8, 7))
    cache = KVCache(model, 3, 20)
    check(model, step(model, cache, [one, two]), [one, two])
    said = [[*one, 1], [*two, 2]]
    check(model, step(model, cache, [[1], [2]]), said)
    step(model, cache, [three[:4]], first=2)
    check(model, step(model, cache, [three[4:]], first=2), [three])
    said.append(three)
    for newest in ([3, 4, 5], [6, 7, 8]):
        said = [[*row, token] for row, token in zip(said, newest, strict=True)]
        check(model, step(model, cache, [[token] for token in newest]), said)
    assert cache.lengths.tolist() == [8, 11, 9]
    # The first leaves: the last moves into its slot.
    cache.move(2, 0)
    said = [[*said[2], 9], [*said[1], 10]]
    check(model, step(model, cache, [[9], [10]]), said)


@pytest.mark.parametrize("name", FAMILIES)
def test_right_padded_prompts_give_all_their_logits(name):
    model = small_model(name, np.float64)
    rows = [[1, 2, 3, 4], [5], [6, 7]]
    cache = KVCache(model, 3, 6)
    logits = step(model, cache, rows, last_only=False).reshape(3, 4, -1)
    for row, ours in zip(rows, logits, strict=True):
        assert_close(ours[: len(row)], model([row])[0])
    assert cache.lengths.tolist() == [4, 1, 2]
    assert cache.length == 4
    cache.truncate(2)
    assert cache.lengths.tolist() == [2, 1, 2]
    cache.truncate(0, slot=2)
    assert cache.lengths.tolist() == [2, 1, 0]
    cache.reserve(30)
    assert cache.keys.shape[3] >= 30
    check(model, step(model, cache, [[9]] * 3), [[1, 2, 9], [5, 9], [9]])
    twice = cache.selected([0, 0, 1, 1, 2, 2])
    assert twice.lengths.tolist() == [3, 3, 2, 2, 1, 1]
    logits = step(model, twice, [[8]] * 6)
    check(model, logits[::2], [[1, 2, 9, 8], [5, 9, 8], [9, 8]])
    np.testing.assert_array_equal(logits[::2], logits[1::2])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_not_filled_reaches_no_result(name):
    """Memory that was used before may hold anything, and 0 · NaN is NaN."""
    model = small_model(name)
    config = model.config
    shape = (config.layers, 2, config.kv_heads, 10, config.head_size)
    for size in range(1, 40):
        for array in [runtime.empty((size, *shape), np.float32) for _ in range(3)]:
            array.fill(np.nan)
    del array
    for _ in range(3):
        cache = KVCache(model, 2, 10)
        step(model, cache, [[1, 2, 3, 4], [5]])
        cache.reserve(30)
        assert np.isfinite(step(model, cache, [[1], [2]])).all()
        assert np.isfinite(step(model, cache.selected([0, 0, 1, 1]), [[1]] * 4)).all()


def test_what_a_cache_does_not_take_is_told():
    model = small_model("default")
    cache = KVCache(model, 2, 5)
    with pytest.raises(ValueError, match="room for 5 positions of 2 sequences, needed are 6 of 2"):
        step(model, cache, [[1] * 6] * 2)
    step(model, cache, [[1, 2], [3]])
    with pytest.raises(ValueError, match=r"2 tokens after sequences of lengths \[2, 1\]"):
        step(model, cache, [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="length=-1"):
        cache.truncate(-1)
    assert cache.lengths.tolist() == [2, 1]


@pytest.mark.filterwarnings("ignore::numgpt.generation.decode.LengthWarning")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("slide", [False, True])
def test_a_batch_of_unequal_prompts_is_each_alone(name, slide):
    """With ends at different times, and contexts that are full at different times."""
    model = small_model(name, np.float64)
    model.parameters.flat[:] *= 2  # clearer choices
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11], [4, 4, 4]]
    options = {"eos_token_id": 7, "pad_token_id": 0, "slide": slide, "max_new_tokens": 60}
    together = model.generate(prompts, **options)
    for ours, prompt in zip(together, prompts, strict=True):
        ours = ours[5 - len(prompt) :]
        theirs = model.generate([prompt], **options)[0]
        assert ours[: len(theirs)].tolist() == theirs.tolist()
        assert not ours[len(theirs) :].any()


def test_who_leaves_changes_nothing_for_the_others(monkeypatch):
    """A row that has ended is not computed any more."""
    model = small_model("default", np.float64)
    sizes = []
    forward = type(model).forward

    def counting(self, ids, ctx):
        sizes.append(len(ids))
        return forward(self, ids, ctx)

    monkeypatch.setattr(type(model), "forward", counting)
    options = {"do_sample": True, "seed": 1, "top_k": 0, "max_new_tokens": 15, "pad_token_id": 0}
    whole = model.generate([[1, 2]] * 6, eos_token_id=[], **options)
    assert sizes == [1] + 14 * [6]  # the prompt, which all share, and each step but the last
    sizes.clear()
    stopped = model.generate([[1, 2]] * 6, eos_token_id=list(range(0, 37, 6)), **options)
    assert sizes.pop(0) == 1
    assert min(sizes) < max(sizes) <= 6
    assert sizes == sorted(sizes, reverse=True)
    for ours, theirs in zip(stopped, whole, strict=True):
        end = next((i for i, id in enumerate(theirs[2:], 2) if id % 6 == 0), len(theirs) - 1)
        assert ours[: end + 1].tolist() == theirs[: end + 1].tolist()
        assert not ours[end + 1 :].any()


def test_holes_in_a_mask_are_no_tokens():
    model = small_model("default", np.float64)
    ids = np.array([[0, 1, 0, 2, 0, 3], [4, 5, 6, 7, 8, 9]])
    mask = np.array([[0, 1, 0, 1, 0, 1], [1] * 6])
    together = model.generate(ids, attention_mask=mask, max_new_tokens=40, slide=True)
    for row, prompt in zip(together, ([1, 2, 3], ids[1].tolist()), strict=True):
        alone = model.generate([prompt], max_new_tokens=40, slide=True)[0]
        assert row[6:].tolist() == alone[len(prompt) :].tolist()


def test_a_cache_may_hold_the_start_of_a_padded_prompt():
    model = small_model("default", np.float64)
    options = {"attention_mask": [[0, 0, 1, 1]], "max_new_tokens": 3}
    expected = list(model.stream([[0, 0, 5, 6]], **options))
    cache = KVCache(model, 1, 10)
    step(model, cache, [[5]])
    assert list(model.stream([[0, 0, 5, 6]], kv_cache=cache, **options)) == expected
    with pytest.raises(ValueError, match="holds 4 positions, the prompt has 2 tokens"):
        model.stream([[0, 0, 5, 6]], kv_cache=cache, **options)

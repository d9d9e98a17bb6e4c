"""Copies and pickles are whole and independent: a copied model trains, and only itself."""

import copy
import pickle

import numpy as np
import pytest
from generation.chats import SETUPS, greedy, said, setup
from models.references import batch, small_model

from numgpt import AdamW, CharTokenizer, KVCache, Tokenizer, formats

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


@pytest.fixture(params=WAYS)
def copied(request):
    return WAYS[request.param]


@pytest.mark.parametrize("name", ["default", "untied", "llama_grouped", "llama_biases"])
def test_a_copied_model_trains_and_only_itself(copied, name):
    model = small_model(name)
    model.freeze("*norm*" if "llama" in name else "ln_f.*")
    ids, targets = batch(model.config, (4, 8))
    model.loss_and_grads(ids, targets)
    before = model.parameters.flat.copy()
    other = copied(model)
    assert other.trained == model.trained
    np.testing.assert_array_equal(other.gradients.flat, model.gradients.flat)
    for parameters in (other.parameters, other.gradients):
        assert all(np.shares_memory(array, parameters.flat) for array in parameters.values())
    losses = []
    optimizer = AdamW(other, lr=1e-2)
    for _ in range(5):
        losses.append(other.loss_and_grads(ids, targets)[0])
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    assert other.loss(ids, targets) < losses[-1]  # the named arrays are those that are trained
    np.testing.assert_array_equal(model.parameters.flat, before)


def test_a_mapped_model_is_copied_into_memory(copied, tmp_path):
    small_model("default").save_pretrained(tmp_path)
    model = formats.load_model(tmp_path)
    other = copied(model)
    other.parameters["wte"][:] = 0
    assert model.parameters["wte"].any()
    assert not other(np.arange(3))[..., 1:].any()


def test_a_copied_optimizer_goes_on_with_its_model(copied):
    model = small_model("default")
    ids, targets = batch(model.config, (4, 8))
    optimizer = AdamW(model)
    model.loss_and_grads(ids, targets)
    optimizer.step()
    other = copied(optimizer)
    assert other.model is not model
    for one in (optimizer, other):
        one.model.loss_and_grads(ids, targets)
        one.step()
    assert other.steps == 2
    np.testing.assert_array_equal(other.m, optimizer.m)
    np.testing.assert_array_equal(other.model.parameters.flat, model.parameters.flat)
    assert not np.shares_memory(other.v, optimizer.v)


@pytest.mark.parametrize("pattern", ["gpt2", "llama3"])
def test_copied_tokenizers_encode_alike(copied, pattern):
    text = "ab ab abc ä 12 \n"
    for tokenizer in (
        Tokenizer.train([text * 9], 270, pattern=pattern),
        CharTokenizer.train([text]),
    ):
        ids = tokenizer.encode(text)
        other = copied(tokenizer)
        assert other.encode(text) == ids
        assert other.decode(ids) == text
        assert other.encode("abcab") == tokenizer.encode("abcab")


def test_a_copied_cache_is_filled_by_itself(copied):
    model = small_model("default")
    cache = KVCache(model, 1, 8)
    model.hidden(np.array([[1, 2, 3]]), cache.view(3))
    other = copied(cache)
    ids = np.array([[4]])
    ours, theirs = (model.hidden(ids, c.view(ids.shape[1])) for c in (cache, other))
    np.testing.assert_array_equal(ours, theirs)
    assert (cache.length, other.length) == (4, 4)
    other.keys[:] = 0
    assert cache.keys.any()


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("way", [*WAYS, "copy"])
def test_a_copied_chat_goes_its_own_way(name, way):
    chat = greedy(*setup(name))
    said(chat, "Hi")
    speaking = chat.ask("Who are you?")
    next(speaking)
    other = (WAYS | {"copy": copy.copy})[way](chat)
    assert [m["content"] for m in other.messages[::2]] == ["Hi"]
    rest = "".join(speaking)
    assert [m["content"] for m in chat.messages[::2]] == ["Hi", "Who are you?"]
    assert len(other.messages) == 2
    assert said(other, "Who are you?").endswith(rest)
    assert other.messages == chat.messages


def test_a_shallow_copys_adapter_is_its_own():
    model = small_model("default")
    other = copy.copy(model)
    model.add_adapter(seed=3)
    model.adapter.parameters.flat[:] = 0.1
    ids, targets = batch(model.config, (2, 7))
    assert other.adapter is None
    assert not np.array_equal(model(ids), other(ids))
    _, gradients = model.loss_and_grads(ids, targets)
    assert gradients.flat.any()


def test_other_parameters_leave_nothing_behind_in_a_pickle():
    model = small_model("default")
    size = len(pickle.dumps(model))
    model.parameters = copy.deepcopy(model.parameters)
    assert len(pickle.dumps(model)) < 1.01 * size

"""What a file says of its weights is what is computed, or is refused or told by name."""

import warnings

import numpy as np
import pytest
from formats.source_writers import nanogpt_checkpoint
from formats.test_damaged_models import save_torch
from models.references import batch, small_model
from support import assert_close

import numgpt
from numgpt import Tokenizer
from numgpt.formats import load_model, read_safetensors, write_safetensors

WEIGHTS = "model.safetensors"


def tensors_of(directory) -> dict[str, np.ndarray]:
    return {n: np.array(t.raw) for n, t in read_safetensors(directory / WEIGHTS)[0].items()}


def add(directory, **tensors) -> None:
    write_safetensors(directory / WEIGHTS, tensors_of(directory) | tensors)


def tied(name: str):
    model = small_model("default" if name == "default" else "llama_grouped")
    if not model.config.tie_word_embeddings:
        config = type(model.config)(**{**vars(model.config), "tie_word_embeddings": True})
        model = type(model)(config, seed=3)
    return model


@pytest.mark.live("transformers", "torch")
@pytest.mark.parametrize("name", ["default", "llama"])
def test_an_unembedding_of_its_own_is_read(name, tmp_path):
    """transformers unties where the config says tied and the file has another lm_head."""
    model = tied(name)
    model.save_pretrained(tmp_path)
    ids, _ = batch(model.config, (2, 5))
    table = model.parameters[model.embeddings[0]]
    add(tmp_path, **{"lm_head.weight": table.copy()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = load_model(tmp_path)
    assert same.config.tie_word_embeddings
    assert_close(same(ids), model(ids))
    other = table * 2 + 1
    add(tmp_path, **{"lm_head.weight": other})
    with pytest.warns(UserWarning, match="'lm_head.weight' is not the embedding's table"):
        untied = load_model(tmp_path)
    assert not untied.config.tie_word_embeddings
    untied.save_pretrained(tmp_path / "again")  # and stays so
    again = load_model(tmp_path / "again")
    assert_close(again(ids), untied(ids))
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(untied(ids), theirs(torch.tensor(ids)).logits.numpy())


@pytest.mark.parametrize("name", ["default", "llama"])
def test_the_one_matrix_under_the_unembeddings_name(name, tmp_path):
    """transformers ties it the other way round."""
    model = tied(name)
    model.save_pretrained(tmp_path)
    tensors = tensors_of(tmp_path)
    (table,) = [n for n in tensors if n.endswith(("wte.weight", "embed_tokens.weight"))]
    tensors["lm_head.weight"] = tensors.pop(table)
    write_safetensors(tmp_path / WEIGHTS, tensors)
    ids, _ = batch(model.config, (2, 5))
    assert_close(load_model(tmp_path)(ids), model(ids))


def test_in_nanogpts_checkpoints_too(tmp_path):
    model = small_model("default")
    model.config.activation_function = "gelu"
    saved = nanogpt_checkpoint(model)
    saved["model"]["lm_head.weight"] = saved["model"]["lm_head.weight"] * 2 + 1
    save_torch(tmp_path / "ckpt.pt", saved)
    with pytest.warns(UserWarning, match="is not the embedding's table"):
        read = load_model(tmp_path / "ckpt.pt")
    np.testing.assert_array_equal(read.parameters["lm_head"], model.parameters["wte"] * 2 + 1)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_before_names_are_taken_off(prefix, tmp_path):
    model = small_model("default")
    model.save_pretrained(tmp_path)
    write_safetensors(
        tmp_path / WEIGHTS, {f"{prefix}{n}": array for n, array in tensors_of(tmp_path).items()}
    )
    ids, _ = batch(model.config, (2, 5))
    np.testing.assert_array_equal(load_model(tmp_path)(ids), model(ids))
    adapted = small_model("default")
    adapted.add_adapter()
    adapted.save_adapter(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    arrays = {f"{prefix}{n}": np.array(t.raw) for n, t in read_safetensors(path)[0].items()}
    write_safetensors(path, arrays)
    model.load_adapter(tmp_path / "adapter")


def test_heads_of_other_tasks_are_left_out_by_name(tmp_path):
    model = small_model("default")
    model.save_pretrained(tmp_path)
    add(tmp_path, **{"v_head.summary.weight": np.ones((1, 16)), "score.weight": np.ones((2, 16))})
    with pytest.warns(
        UserWarning, match=r"score\.weight, v_head\.summary\.weight: of a head that a"
    ):
        loaded = load_model(tmp_path)
    ids, _ = batch(model.config, (2, 5))
    np.testing.assert_array_equal(loaded(ids), model(ids))
    add(tmp_path, **{"other.weight": np.ones((1, 16))})
    with pytest.raises(ValueError, match=r"'other\.weight' has no place"):
        load_model(tmp_path)


def test_a_tokenizer_a_few_tokens_longer_than_the_table(tmp_path):
    tokenizer = Tokenizer.train(["To be, or not to be. " * 9], 260)
    config = numgpt.GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=9, vocab_size=260)
    assert tokenizer.vocab_size <= 260
    numgpt.GPT(config).save_pretrained(tmp_path)
    more = {**tokenizer.special_tokens, "[PAD]": 260, "<a>": 261}
    settings = {"pad_token": "[PAD]"}
    Tokenizer(tokenizer.vocabulary, tokenizer.merges, more, settings=settings).save_pretrained(
        tmp_path
    )
    with pytest.warns(
        UserWarning, match=r"has 262 tokens, the model's table 260: '\[PAD\]', '<a>'"
    ):
        model, loaded = numgpt.load(tmp_path)
    assert loaded.pad_token_id == 260
    ids = model.generate(loaded.encode("To be"), max_new_tokens=3, tokenizer=loaded, do_sample=True)
    assert ids.max() < 260
    vocabulary = {**tokenizer.vocabulary, b"abc": 263}
    Tokenizer(vocabulary, tokenizer.merges, more).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="they don't belong together"):
        numgpt.load(tmp_path)

"""Adapters in PEFT's files: saved, loaded, refused where they do not fit; against PEFT itself."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from models.references import batch, small_model, to_transformers
from models.test_lora import FAMILIES, adapted
from support import assert_close

import numgpt
from numgpt import LoRAConfig
from numgpt.formats import read_safetensors, write_safetensors

TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rslora", [False, True])
def test_saved_and_loaded_is_the_same(name, rslora, tmp_path):
    model = adapted(name, np.float32, use_rslora=rslora, lora_dropout=0.25)
    ids, _ = batch(model.config, (2, 7))
    model.save_adapter(tmp_path)
    other = small_model(name)
    adapter = other.load_adapter(tmp_path, "read")
    np.testing.assert_array_equal(other(ids), model(ids))
    assert other.active_adapter == "read"
    assert list(other.trained) == list(model.trained)
    for field in ("r", "lora_alpha", "lora_dropout", "use_rslora"):
        assert getattr(adapter.config, field) == getattr(model.adapter.config, field)


def test_the_files_are_pefts(tmp_path):
    model = adapted("default", np.float32, target_modules=["c_attn"])
    model.save_adapter(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert fields["target_modules"] == ["c_attn"]
    assert fields["fan_in_fan_out"] is True
    assert (fields["r"], fields["lora_alpha"]) == (3, 6)
    tensors, _ = read_safetensors(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.0.attn.c_attn"
    assert tensors[f"{name}.lora_A.weight"].shape == (3, 16)
    assert tensors[f"{name}.lora_B.weight"].shape == (48, 3)


def test_rotated_rows_are_stored_as_the_base_is(tmp_path):
    """A base from GGUF pairs neighbours; in files the rows of B have Hugging Face's order."""
    model = adapted("llama_grouped", np.float32)
    ids, _ = batch(model.config, (2, 7))
    model.save_adapter(tmp_path / "adapter")
    neighbours = small_model("llama_grouped")
    neighbours.config.rope_interleave = True
    family = numgpt.formats.families.family_of(neighbours)
    for name, array in neighbours.parameters.items():
        array[...] = family.own_array(name, array.copy(), neighbours.config)
    neighbours.load_adapter(tmp_path / "adapter")
    assert_close(neighbours(ids), model(ids))
    neighbours.save_adapter(tmp_path / "again")
    read = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("adapter", "again")]
    assert read[0] == read[1]


def test_load_with_an_adapter_and_by_itself(tmp_path):
    base = small_model("default")
    base.save_pretrained(tmp_path / "base")
    numgpt.load("shakespeare")[1].save_pretrained(tmp_path / "base")
    assert_raises_loading(tmp_path)
    model = numgpt.GPT.from_pretrained(tmp_path / "base")
    assert model.name_or_path == str(tmp_path / "base")
    model.add_adapter(LoRAConfig(r=2))
    model.adapter.parameters["h.0.attn.c_attn.lora_B.weight"][...] = 0.5
    model.save_adapter(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = numgpt.GPT.from_pretrained(tmp_path / "base")
        other.load_adapter(tmp_path / "adapter")
    ids, _ = batch(model.config, (2, 7))
    np.testing.assert_array_equal(other(ids), model(ids))


def assert_raises_loading(tmp_path):
    with pytest.raises(ValueError, match="belong together"):
        numgpt.load(tmp_path / "base")


def test_an_adapter_of_a_named_model(tmp_path):
    model, tokenizer = numgpt.load("shakespeare")
    model.add_adapter(LoRAConfig(r=2))
    model.adapter.parameters["h.0.attn.c_attn.lora_B.weight"][...] = 0.5
    model.save_adapter(tmp_path)
    ids = tokenizer.encode("To be, or")
    for loaded, _ in (numgpt.load(tmp_path), numgpt.load("shakespeare", adapter=tmp_path)):
        np.testing.assert_array_equal(loaded(ids), model(ids))
        assert loaded.active_adapter == "default"
    other = numgpt.GPT(model.config)
    other.name_or_path = "some/other"
    with pytest.warns(UserWarning, match="made for the base 'shakespeare', the model is 'some/oth"):
        other.load_adapter(tmp_path)
    edit(tmp_path, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not say of which model: name the model, and"):
        numgpt.load(tmp_path)


def edit(directory, **fields):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported, only LORA"),
        ({"use_dora": True}, "DoRA is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not"),
        ({"rank_pattern": {"c_attn": 4}}, "rank_pattern=.* is not supported"),
        ({"r": "8"}, "r='8'"),
        ({"r": 4}, r"has shape \[3, 16\], the model None and r=4 ask for \[4, 16\]"),
        ({"lora_alpha": None}, "lora_alpha=None"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, message, tmp_path):
    adapted("default", np.float32).save_adapter(tmp_path)
    edit(tmp_path, **fields)
    model = small_model("default")
    with pytest.raises(ValueError, match=message) as error:
        model.load_adapter(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not model.adapters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.popitem(), "lacks one of A and B"),
        (lambda t: t.clear(), "holds no tensors"),
        (lambda t: t.update({"base_model.model.wte.lora_A.weight": np.ones((3, 4))}), "no project"),
        (lambda t: t.update({"x.lora_magnitude_vector": np.ones(3)}), r"no A or B.*\(DoRA\)"),
        (lambda t: t.update({k: v * np.nan for k, v in list(t.items())[:1]}), "NaN or infinity"),
        (lambda t: t.update({k: v.T for k, v in list(t.items())[:1]}), "is for another base"),
    ],
)
def test_damaged_tensors_are_refused(change, message, tmp_path):
    adapted("default", np.float32).save_adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    arrays = {name: np.array(tensor.raw) for name, tensor in read_safetensors(path)[0].items()}
    change(arrays)
    write_safetensors(path, arrays)
    with pytest.raises(ValueError, match=message):
        small_model("default").load_adapter(tmp_path)


def test_adapters_that_are_not_there(tmp_path):
    model = small_model("default")
    with pytest.raises(FileNotFoundError, match=r"expected adapter_config\.json"):
        model.load_adapter(tmp_path)
    with pytest.raises(ValueError, match="no adapter None to save: there are none"):
        model.save_adapter(tmp_path)
    adapted("default", np.float32).save_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model"):
        model.load_adapter(tmp_path)
    adapted("llama_grouped", np.float32).save_adapter(tmp_path)
    with pytest.raises(ValueError, match="for no projection of None: the adapter is for another"):
        model.load_adapter(tmp_path)


@pytest.mark.peers
@pytest.mark.torch
class TestWithPEFT:
    @pytest.fixture(autouse=True)
    def peft(self):
        return pytest.importorskip("peft", reason="compares with peft")

    @pytest.mark.parametrize("name", [*FAMILIES, "llama_qwen2"])
    @pytest.mark.parametrize("rslora", [False, True])
    def test_peft_loads_what_is_saved(self, peft, name, rslora, tmp_path):
        import torch

        model = adapted(name, np.float64, use_rslora=rslora)
        for array in model.adapter.parameters.values():
            array[...] = array.astype(np.float32)  # as they are stored
        model.save_adapter(tmp_path)
        theirs = peft.PeftModel.from_pretrained(
            to_transformers(small_model(name, np.float64)), tmp_path, is_trainable=True
        ).double()
        ids, targets = batch(model.config, (2, 7))
        logits = theirs(torch.tensor(ids)).logits
        # In float64; but transformers turns by angles in float32, whatever it computes in.
        assert_close(np.float32(model(ids)), np.float32(logits.detach().numpy()))
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=-100
        ).backward()
        _, gradients = model.loss_and_grads(ids, targets)
        compared = 0
        for their_name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                family = numgpt.formats.families.family_of(model)
                stored = their_name.removeprefix("base_model.model.").replace(".default.", ".")
                projection, _, part = stored.rpartition(".lora_")
                ours = family.our_name(f"{projection}.weight", model.config)
                ours = f"{ours.removesuffix('.weight')}.lora_{part}"
                theirs_of_it = np.float32(parameter.grad.numpy())
                assert_close(np.float32(gradients[ours]), theirs_of_it, ours)
                compared += 1
        assert compared == len(gradients)

    @pytest.mark.parametrize("name", [*FAMILIES, "llama_qwen2"])
    @pytest.mark.parametrize("target", ["default", "every", "all-linear"])
    def test_what_peft_saves_is_loaded(self, peft, name, target, tmp_path):
        import torch

        kind = "llama" if name.startswith("llama") else "gpt2"
        targets = {"default": None, "every": TARGETS[kind], "all-linear": "all-linear"}[target]
        config = peft.LoraConfig(
            r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM",
            init_lora_weights=False, fan_in_fan_out=kind == "gpt2",
        )  # fmt: skip
        torch.manual_seed(0)
        theirs = peft.get_peft_model(to_transformers(small_model(name)), config).eval()
        theirs.save_pretrained(tmp_path)
        model = small_model(name)
        model.load_adapter(tmp_path)
        ids, _ = batch(model.config, (2, 7))
        with torch.no_grad():
            assert_close(model(ids), theirs(torch.tensor(ids)).logits.numpy())
        if target == "default":
            assert len(model.adapter.names()) == len(theirs.targeted_module_names)

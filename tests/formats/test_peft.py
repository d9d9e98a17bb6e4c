"""Adapters in PEFT's files: saved, loaded, refused where they do not fit; against PEFT itself."""

import json
import warnings

import numpy as np
import pytest
from models.references import batch, small_model, to_transformers
from models.test_lora import FAMILIES, adapted
from support import assert_close

import numgpt
from numgpt import LoRAConfig, Tokenizer, cli
from numgpt.formats import read_safetensors, write_safetensors

# What of the projections an adapter is for, and in which rank, given two of their last parts.
CHOICES = (
    lambda first, second: {"rank_pattern": {first: 2}, "alpha_pattern": {second: 31}},
    lambda first, second: {"rank_pattern": {rf"(h|layers)\.1\..*{second}": 3}, "use_rslora": True},
    lambda first, second: {"exclude_modules": [second]},
    lambda first, second: {"init_lora_weights": "Gaussian"},
    lambda first, second: {"exclude_modules": rf".*\.0\..*{first}"},
    lambda first, second: {"layers_to_transform": [1]},
    lambda first, second: {"layers_to_transform": 0, "layers_pattern": ["h", "layers"]},
    lambda first, second: {"target_modules": rf".*\.1\..*({first}|{second})"},
)
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


def test_load_with_an_adapter_and_by_itself(tmp_path):
    base = small_model("default")
    base.save_pretrained(tmp_path / "base")
    numgpt.load("shakespeare")[1].save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="belong together"):
        numgpt.load(tmp_path / "base")
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


def test_fields_that_are_not_known_are_named(tmp_path):
    adapted("default", np.float32).save_adapter(tmp_path)
    edit(tmp_path, use_magic=True, peft_version="9", task_type=None)
    with pytest.warns(UserWarning, match=r"adapter_config\.json: use_magic: not known here"):
        small_model("default").load_adapter(tmp_path)


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "nowhere"]])
def test_tensors_beyond_the_targets_are_left_out(tmp_path, targets):
    """A target that is nowhere changes nothing of the others."""
    model = adapted("default", np.float32, target_modules=["c_attn", "c_fc"])
    model.save_adapter(tmp_path)
    edit(tmp_path, target_modules=targets)
    other = small_model("default")
    told = r"tensors for 2 projections that its target_modules do no.*mlp\.c_fc"
    with pytest.warns(UserWarning, match=told):
        other.load_adapter(tmp_path)
    assert {name.rpartition(".")[2] for name in other.adapter.names()} == {"c_attn"}


def test_a_base_whose_weights_changed_under_its_name_is_told(tmp_path, capsys):
    model, tokenizer = numgpt.load("shakespeare")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model, _ = numgpt.load(tmp_path / "base")
    model.add_adapter(LoRAConfig(r=2))
    model.adapter.parameters["h.0.attn.c_attn.lora_B.weight"][...] = 0.5
    model.merge_adapter()
    model.save_adapter(tmp_path / "adapter")  # of the weights without it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numgpt.load(tmp_path / "base", adapter=tmp_path / "adapter")
    base, _ = numgpt.load(tmp_path / "base", mmap=False)
    base.parameters.flat *= 1.1
    base.save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="whose weights were others"):
        numgpt.load(tmp_path / "base", adapter=tmp_path / "adapter")
    named = ("--model", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter"))
    (tmp_path / "text").write_text("To be, or not to be\n" * 9)
    for command in (
        ["generate", "To", "--max-new-tokens", "1", *named],
        ["eval", "--data", str(tmp_path / "text"), *named],
        ["convert", named[1], str(tmp_path / "merged"), *named[2:]],
        ["info", str(tmp_path / "adapter")],
    ):
        assert cli.main(command) == 0
        assert "whose weights were others" in capsys.readouterr().err, command[0]


def test_convert_tells_of_another_base_and_refuses_a_tokenizer_too_large(tmp_path, capsys):
    model, tokenizer = numgpt.load("shakespeare")
    model.add_adapter(LoRAConfig(r=2))
    model.save_adapter(tmp_path / "adapter")
    other = numgpt.GPT(model.config, seed=3)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    convert = ["convert", str(tmp_path / "other"), str(tmp_path / "out")]
    assert cli.main([*convert, "--adapter", str(tmp_path / "adapter")]) == 0
    assert "was made for the base 'shakespeare', the model is" in capsys.readouterr().err
    more = Tokenizer.train(["To be, or not to be. " * 9], 300)
    vocabulary = {**more.vocabulary, b"xyz": model.config.vocab_size + 3}
    Tokenizer(vocabulary, more.merges).save_pretrained(tmp_path / "adapter")
    convert[2] = str(tmp_path / "again")
    assert cli.main([*convert, "--adapter", str(tmp_path / "adapter")]) == 2
    assert "they don't belong together" in capsys.readouterr().err
    assert not (tmp_path / "again" / "config.json").exists()
    with pytest.raises(ValueError, match="don't belong together"):
        numgpt.load(tmp_path / "other", adapter=tmp_path / "adapter")


@pytest.mark.live("torch", "transformers", "peft")
class TestWithPEFT:
    @pytest.fixture(autouse=True)
    def peft(self):
        import peft

        return peft

    @pytest.mark.parametrize("name", [*FAMILIES, "llama_qwen2", "llama_qwen3"])
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

    @pytest.mark.parametrize("name", [*FAMILIES, "llama_qwen2", "llama_qwen3"])
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

    @pytest.mark.parametrize("name", ["default", "llama_grouped"])
    @pytest.mark.parametrize("options", range(len(CHOICES)))
    def test_ranks_alphas_and_choices_are_pefts(self, peft, name, options, tmp_path):
        """… both ways: what PEFT saves is loaded, and what we save of it is what PEFT loads."""
        import torch

        kind = "llama" if name.startswith("llama") else "gpt2"
        first, second = TARGETS[kind][0], TARGETS[kind][1]
        chosen = CHOICES[options](first, second)
        torch.manual_seed(0)
        config = peft.LoraConfig(
            **{"r": 4, "lora_alpha": 12, "target_modules": TARGETS[kind]}
            | {"init_lora_weights": False} | chosen,
            task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2",
        )  # fmt: skip
        theirs = peft.get_peft_model(to_transformers(small_model(name)), config).eval()
        for parameter_name, parameter in theirs.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
        theirs.save_pretrained(tmp_path / "theirs")
        model = small_model(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.load_adapter(tmp_path / "theirs")
        ids, targets = batch(model.config, (2, 7))
        with torch.no_grad():
            expected = theirs(torch.tensor(ids)).logits.numpy()
        assert_close(model(ids), expected)
        assert len(model.adapter.names()) == len(theirs.targeted_module_names)
        model.save_adapter(tmp_path / "ours")
        again = peft.PeftModel.from_pretrained(
            to_transformers(small_model(name)), tmp_path / "ours"
        ).eval()
        with torch.no_grad():
            assert_close(again(torch.tensor(ids)).logits.numpy(), expected)
        _, gradients = model.loss_and_grads(ids, targets)
        assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())
        model.merge_adapter()
        assert_close(model(ids), expected)

    def test_an_adapter_that_lacks_a_layer(self, peft, tmp_path):
        """PEFT leaves what is lacking as the base has it; we do, and say so."""
        import torch

        model = adapted("default", np.float32)
        model.save_adapter(tmp_path)
        path = tmp_path / "adapter_model.safetensors"
        tensors = {n: np.array(t.raw) for n, t in read_safetensors(path)[0].items()}
        write_safetensors(path, {n: a for n, a in tensors.items() if ".h.1." not in n})
        other = small_model("default")
        count = len(model.adapter.names())
        with pytest.warns(UserWarning, match=rf"for \d+ of the {count} projections .* h\.1\."):
            other.load_adapter(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.PeftModel.from_pretrained(
                to_transformers(small_model("default")), tmp_path
            )
        ids, _ = batch(model.config, (2, 7))
        with torch.no_grad():
            assert_close(other(ids), theirs.eval()(torch.tensor(ids)).logits.numpy())
        assert not np.array_equal(other(ids), model(ids))

    def test_every_field_of_pefts_config_is_known(self, peft, tmp_path):
        adapted("default", np.float32).save_adapter(tmp_path)
        config = peft.LoraConfig.from_pretrained(tmp_path)
        config.save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            small_model("default").load_adapter(tmp_path)

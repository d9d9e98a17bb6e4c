"""trl's own losses, gradients and steps on tiny models, beside ours on the same batches."""

import logging
import warnings

import numpy as np
import pytest
from models.references import LLAMA_SMALL, to_transformers

from numgpt import GPT, AdamW, GPTConfig, Llama, LlamaConfig, LoRAConfig, Tokenizer, objectives
from numgpt.formats.families import family_of

pytestmark = [
    pytest.mark.live("trl", "torch", "transformers", "datasets", "peft"),
    pytest.mark.filterwarnings("ignore"),
]

TOKENIZER = Tokenizer.train(
    ["To be, or not to be, that is the question. " * 9], 300, ["<|endoftext|>", "<pad>"]
)
SIZE = TOKENIZER.vocab_size
TINY = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
TINY |= {"max_position_embeddings": 64, "vocab_size": SIZE}
CONFIGS = {
    "GPT-2": (GPT, GPTConfig(2, 2, 16, 64, SIZE)),
    "Llama": (Llama, LlamaConfig(**LLAMA_SMALL | TINY)),
}
PAIRS = [
    {"prompt": "To be, or ", "chosen": "not to be", "rejected": "question"},
    {"prompt": "that is ", "chosen": "the question.", "rejected": "to be, or not"},
    {"prompt": "to ", "chosen": "be", "rejected": "or not that"},
]
JUDGED = [
    {"prompt": "To be, or ", "completion": "not to be", "label": True},
    {"prompt": "that is ", "completion": "the question.", "label": False},
    {"prompt": "to be ", "completion": "or not", "label": True},
]
BETA, LR = 0.3, 1e-3
OF_KTO = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
LORA_TARGETS = {GPT: ["c_attn", "c_proj", "c_fc"], Llama: "all-linear"}
T = np.float64  # in which no gradient is noise that Adam would divide by its own size


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


def their_tokenizer(directory):
    import transformers

    TOKENIZER.save_pretrained(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    theirs.pad_token, theirs.eos_token = "<pad>", "<|endoftext|>"
    return theirs


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A trainer of trl's on a model of ours, with another as its reference."""
    import datasets
    import torch
    import transformers
    import trl

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = their_tokenizer(tmp_path / "tokenizer")

    def directory(model):
        place = tmp_path / f"model {id(model)}"
        to_transformers(model).save_pretrained(place)
        return transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64)

    def make(kind, model, reference, rows, lora=None, **options):
        common = {"report_to": [], "use_cpu": True, "max_steps": 1, "save_strategy": "no"}
        common |= {"gradient_checkpointing": False, "bf16": False, "disable_tqdm": True}
        common |= {"learning_rate": LR, "lr_scheduler_type": "constant", "weight_decay": 0.1}
        common |= {"adam_beta2": 0.99, "per_device_train_batch_size": len(rows), "beta": BETA}
        config = getattr(trl, f"{kind}Config")(output_dir=str(tmp_path / kind), **common | options)
        arguments = {"ref_model": directory(reference)} if kind in ("DPO", "KTO") else {}
        if kind == "GRPO":
            arguments["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
        if lora is not None:
            import peft

            arguments.pop("ref_model", None)
            arguments["peft_config"] = peft.LoraConfig(
                r=lora.r, lora_alpha=lora.lora_alpha, target_modules=LORA_TARGETS[type(model)],
                lora_dropout=0.0, task_type="CAUSAL_LM", fan_in_fan_out=isinstance(model, GPT),
            )  # fmt: skip
        trainer = getattr(trl, f"{kind}Trainer")(
            model=directory(model),
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            **arguments,
        )
        trainer.model.train()
        return trainer

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    yield make
    logging.disable(logging.NOTSET)


def model_of(family, seed):
    kind, config = CONFIGS[family]
    model = kind(config, seed=seed, dtype=T)
    for array in model.parameters.values():
        array *= 4 if array.ndim == 2 else 1
    return model


def targets_of(ids, mask):
    return np.where(mask[:, 1:] == 1, ids[:, 1:], -100)


def logps_of(model, ids, mask):
    return model.log_probs(ids[:, :-1], targets_of(ids, mask))


def our_names(model, trainer):
    """Their parameters that train, by our names."""
    family = family_of(model)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            stored = name.removeprefix("base_model.model.").replace(".default.", ".")
            projection, lora, part = stored.rpartition(".lora_")
            ours = family.our_name(f"{projection}.weight" if lora else stored, model.config)
            yield (ours.removesuffix(".weight") + lora + part if lora else ours), parameter


def gradients_agree(model, trainer, theirs, ours):
    """Their loss and ours, and the gradients of both -> our metrics."""
    theirs.backward()
    loss, gradients, metrics = model.value_and_grads(*ours)
    assert loss == pytest.approx(float(theirs), rel=1e-6)
    compared = 0
    for name, parameter in our_names(model, trainer):
        expected = parameter.grad.numpy()
        difference = np.abs(gradients[name] - expected).max()  # their log-softmax is in float32
        assert difference < 1e-6 * max(1, np.abs(expected).max()), name
        compared += 1
    assert compared == len(gradients)
    return metrics


def of_pairs(model, reference, batch, loss_type="sigmoid", label_smoothing=0.0):
    """ids, targets, and the objective of a batch of trl's, the chosen ones first."""
    ids, mask = batch["input_ids"].numpy(), batch["completion_mask"].numpy()
    half, lengths, ref = len(ids) // 2, mask.sum(axis=1), logps_of(reference, ids, mask).sum(1)

    def objective(logp):
        s = logp.sum(axis=1)
        loss, by, metrics = objectives.dpo(
            s[:half], s[half:], ref[:half], ref[half:], BETA, loss_type, label_smoothing,
            lengths=(lengths[:half], lengths[half:]),
        )  # fmt: skip
        return loss, np.concatenate(by)[:, None] * np.ones_like(logp), metrics

    return ids[:, :-1], targets_of(ids, mask), objective


def of_judged(model, reference, batch):
    ids, mask = batch["input_ids"].numpy(), batch["completion_mask"].numpy()
    others, others_mask = batch["KL_input_ids"].numpy(), batch["KL_completion_mask"].numpy()
    z = objectives.mismatched_kl(
        *(logps_of(each, others, others_mask).sum(1) for each in (model, reference))
    )
    ref, good = logps_of(reference, ids, mask).sum(1), np.array(batch["label"]).astype(bool)

    def objective(logp):
        loss, dlogps, metrics = objectives.kto(logp.sum(1), ref, good, z, BETA, 1.5, 0.7)
        return loss, dlogps[:, None] * np.ones_like(logp), metrics

    return ids[:, :-1], targets_of(ids, mask), objective


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "robust", "apo_zero", "bco_pair"])
def test_dpo(family, made, loss_type):
    model, reference = model_of(family, 3), model_of(family, 5)
    smoothing = 0.1 if loss_type == "robust" else 0.0
    trainer = made("DPO", model, reference, PAIRS, loss_type=[loss_type], label_smoothing=smoothing)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    ours = of_pairs(model, reference, batch, loss_type, smoothing)
    metrics = gradients_agree(model, trainer, theirs, ours)
    told = {name: np.mean(values) for name, values in trainer._metrics["train"].items()}
    for name in ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected"):
        # A reward is β times a difference of two log-probabilities, each of some 1e-6 of itself.
        least = 1e-7 * abs(told["logps/rejected"])
        assert metrics[name] == pytest.approx(told[name], rel=1e-5, abs=least), name


def test_kto(family, made):
    model, reference = model_of(family, 5), model_of(family, 3)
    trainer = made("KTO", model, reference, JUDGED, **OF_KTO)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    gradients_agree(model, trainer, theirs, of_judged(model, reference, batch))


def test_reward(made, tmp_path, monkeypatch):
    import datasets
    import transformers
    import trl

    to_transformers(model_of("GPT-2", 3)).save_pretrained(tmp_path / "model")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=1
    )
    config = trl.RewardConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=1, bf16=False,
        gradient_checkpointing=False, per_device_train_batch_size=3,
        center_rewards_coefficient=0.05,
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(PAIRS),
        processing_class=their_tokenizer(tmp_path / "tokenizer"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs, out = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    out.logits.retain_grad()
    theirs.backward()
    scores = out.logits.detach().numpy()[:, 0].astype(T)
    loss, by, _ = objectives.reward(scores[:3], scores[3:], center_coefficient=0.05)
    assert loss == pytest.approx(float(theirs), rel=1e-6)
    np.testing.assert_allclose(np.concatenate(by), out.logits.grad.numpy()[:, 0], atol=1e-7)


def rollouts(model, reference):
    """Prompts of three random tokens, completions of up to six."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (4, 9))
    mask = (np.arange(6) < np.array([6, 2, 4, 1])[:, None]).astype(int)
    whole = np.concatenate([np.zeros((4, 3), int), mask], axis=1)
    old = logps_of(model, ids, whole)[:, 2:] + rng.normal(0, 0.3, (4, 6))
    ref = logps_of(reference, ids, whole)[:, 2:]
    return ids, whole, mask, old, ref, rng.normal(size=4)


def of_rollouts(ids, whole, mask, old, ref, advantages, **options):
    def objective(logp):
        loss, dlogps, metrics = objectives.grpo(
            logp[:, 2:], old, advantages, mask, ref, BETA, **options
        )
        return loss, np.concatenate([np.zeros((4, 2)), dlogps], axis=1), metrics

    return ids[:, :-1], targets_of(ids, whole), objective


def as_inputs(ids, whole, mask, old, ref, advantages):
    """… as trl's trainer has them."""
    import torch

    inputs = {"prompt_ids": ids[:, :3], "prompt_mask": np.ones((4, 3), int)}
    inputs |= {"completion_ids": ids[:, 3:], "completion_mask": mask, "advantages": advantages}
    inputs |= {"old_per_token_logps": old, "ref_per_token_logps": ref}
    return {n: torch.tensor(a) for n, a in (inputs | {"num_items_in_batch": mask.sum()}).items()}


KINDS = [("dapo", "token"), ("grpo", "token"), ("dr_grpo", "token"), ("bnpo", "token")]
KINDS += [("grpo", "sequence")]


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(("loss_type", "level"), KINDS)
def test_grpo(family, made, loss_type, level, corrected):
    model, reference = model_of(family, 3), model_of(family, 5)
    trainer = made(
        "GRPO", model, reference, [{"prompt": "To be"}] * 4, num_generations=2, loss_type=loss_type,
        importance_sampling_level=level, use_bias_correction_kl=corrected, max_completion_length=6,
        epsilon_high=0.25,
    )  # fmt: skip
    sampled = rollouts(model, reference)
    trainer.current_gradient_accumulation_steps = 1
    theirs = trainer._compute_loss(trainer.model, as_inputs(*sampled))
    options = {"loss_type": loss_type, "level": level, "corrected_kl": corrected}
    ours = of_rollouts(*sampled, max_length=6, epsilon_high=0.25, **options)
    metrics = gradients_agree(model, trainer, theirs, ours)
    told = {name: np.mean(values) for name, values in trainer._metrics["train"].items()}
    assert metrics["kl"] == pytest.approx(told["kl"], rel=1e-5) or corrected


@pytest.mark.parametrize("lora", [None, LoRAConfig(r=2, lora_alpha=4)], ids=["whole", "LoRA"])
@pytest.mark.parametrize("kind", ["DPO", "KTO", "GRPO"])
def test_a_whole_step(family, made, kind, lora, monkeypatch):
    """Clipped gradients and AdamW: the parameters after it."""
    import torch

    model, reference = model_of(family, 5), model_of(family, 3)
    rows = {"DPO": PAIRS, "KTO": JUDGED, "GRPO": [{"prompt": "To be"}] * 4}[kind]
    of_grpo = {"num_generations": 2, "max_completion_length": 6}
    options = {"DPO": {}, "KTO": OF_KTO, "GRPO": of_grpo}[kind]
    trainer = made(kind, model, reference, rows, lora, **options)
    if lora is not None:
        reference = model_of(family, 5)  # the base under the adapter
        model.add_adapter(LoRAConfig(lora.r, lora.lora_alpha, LORA_TARGETS[type(model)]))
        rng = np.random.default_rng(1)
        for name, parameter in our_names(model, trainer):
            value = rng.normal(0, 0.2, parameter.shape)
            model.adapter.parameters[name][...] = value
            parameter.data[...] = torch.tensor(value)
    if kind == "GRPO":
        sampled = rollouts(model, reference)
        inputs = as_inputs(*sampled)
        monkeypatch.setattr(trainer, "_prepare_inputs", lambda generation_batch: inputs)
        ours = of_rollouts(*sampled)
    else:
        batch = next(iter(trainer.get_train_dataloader()))
        ours = {"DPO": of_pairs, "KTO": of_judged}[kind](model, reference, batch)
    trainer.train()
    optimizer = AdamW(model, LR, (0.9, 0.99), 1e-8, 0.1)
    before = {name: array.copy() for name, array in model.all_parameters.items()}
    model.value_and_grads(*ours)
    optimizer.step(grad_clip=1.0)
    compared = moved = 0
    for name, parameter in our_names(model, trainer):
        ours_now = model.all_parameters[name]
        assert np.abs(ours_now - parameter.detach().numpy()).max() < 1e-5, name
        moved = max(moved, np.abs(ours_now - before[name]).max())
        compared += 1
    assert compared == len(model.trained)
    assert moved > LR / 2

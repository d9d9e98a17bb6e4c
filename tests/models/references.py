"""transformers' GPT2LMHeadModel and LlamaForCausalLM on our weights: logits, loss, gradients, and
a short training run."""

import dataclasses

import numpy as np
from support import assert_close

from numgpt import GPT, GPTConfig, Llama, LlamaConfig
from numgpt.formats.families import family_of
from numgpt.models import LanguageModel

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 37}
CONFIGS = {
    "default": {},
    "n_inner": {"n_inner": 21},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu", "layer_norm_epsilon": 1e-3},
    "untied": {"tie_word_embeddings": False},
    "scaled_by_layer": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    "odd": {"n_layer": 3, "n_head": 3, "n_embd": 21, "activation_function": "gelu_pytorch_tanh"},
    "one_head": {"n_layer": 1, "n_head": 1, "n_positions": 11},
}
LLAMA_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16}
LLAMA_SMALL |= {"intermediate_size": 44, "max_position_embeddings": 24, "vocab_size": 37}
LLAMA3_SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3_SCALING |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 12}
GROUPED, TIED = {"num_key_value_heads": 2}, {"tie_word_embeddings": True}
SMOLLM = {"num_attention_heads": 3, "num_key_value_heads": 1}
SMOLLM |= {"hidden_size": 24, "num_hidden_layers": 3}
QWEN2 = {"model_type": "qwen2", "attention_bias": True, "attention_output_bias": False}
LLAMA_CONFIGS = {
    "llama": {},
    "llama_grouped": GROUPED | TIED,
    "llama_one_key_head": {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "llama_scaled_rope": GROUPED | {"rope_scaling": LLAMA3_SCALING, "head_dim": 8},
    "llama_biases": {"attention_bias": True, "mlp_bias": True, "rope_theta": 100000.0},
    "llama_smollm_shaped": SMOLLM | TIED,
    "llama_qwen2": GROUPED | TIED | QWEN2,
    "llama_qwen3": GROUPED | TIED | {"model_type": "qwen3", "head_dim": 6},
    "llama_qwen3_untied": {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 2},
}
BATCHES = {"wide": (3, 11), "one_token": (2, 1)}
EVERY_CONFIG = [*CONFIGS, *LLAMA_CONFIGS]
TRAINED = ["default", "llama_grouped"]
TRAINING_STEPS = 20
ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}


def small_model(name: str, dtype=np.float32) -> LanguageModel:
    """A model of one of the configs, with biases and gains that are not just 0 and 1."""
    if name in CONFIGS:
        model = GPT(GPTConfig(**(SMALL | CONFIGS[name])), seed=3, dtype=dtype)
    else:
        model = Llama(LlamaConfig(**(LLAMA_SMALL | LLAMA_CONFIGS[name])), seed=3, dtype=dtype)
    rng = np.random.default_rng(4)
    model.parameters.flat += rng.normal(scale=0.1, size=model.parameters.flat.size).astype(dtype)
    return model


def batch(
    config: GPTConfig | LlamaConfig, shape: tuple[int, int], seed: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(config.vocab_size, size=(2, *shape))
    if shape[1] > 2:
        targets[0, 1] = -100
    return ids, targets


def assert_same(loaded: LanguageModel, model: LanguageModel) -> None:
    """The same parameters, so the same numbers."""
    assert type(loaded) is type(model)
    assert loaded.parameters.flat.dtype == np.float32
    assert set(loaded.parameters) == set(model.parameters)
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], array, err_msg=name)
    ids, _ = batch(model.config, (2, 9))
    assert_close(loaded(ids), model(ids))


def to_transformers(model: LanguageModel):
    """The same weights in a model of transformers, without dropout."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    fields = {n: v for n, v in dataclasses.asdict(model.config).items() if not n.endswith("pdrop")}
    del fields["model_type"]
    if isinstance(model, GPT):
        config = transformers.GPT2Config(
            **fields, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False
        )
        theirs = transformers.GPT2LMHeadModel(_eager(config))
    else:
        fields = family_of(model).config_fields(model.config) | {"use_cache": False}
        family = fields["model_type"].capitalize()
        config = getattr(transformers, f"{family}Config")(**fields)
        theirs = getattr(transformers, f"{family}ForCausalLM")(_eager(config))
    names = family_of(model)
    state = {
        names.stored_name(name): torch.tensor(array) for name, array in model.parameters.items()
    }
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state[names.stored_name(model.unembedding.name)]
    theirs.to(next(iter(state.values())).dtype)
    theirs.load_state_dict(state, strict=True)
    return theirs


def _eager(config):
    config._attn_implementation = "eager"
    return config


def their_logits(theirs, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return theirs.eval()(torch.tensor(ids)).logits.numpy()


def their_generation(theirs, ids: np.ndarray, mask=None, **options):
    import torch

    ids = torch.tensor(ids)
    mask = torch.ones_like(ids) if mask is None else torch.tensor(mask)
    return theirs.generate(ids, attention_mask=mask, **options)


def their_loss(theirs, ids: np.ndarray, targets: np.ndarray):
    import torch

    logits = theirs(torch.tensor(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    return logits, loss


def their_results(
    model: LanguageModel, ids: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    """logits, loss and every gradient under our names."""
    theirs, names = to_transformers(model), family_of(model)
    logits, loss = their_loss(theirs, ids, targets)
    loss.backward()
    results = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    for name, parameter in theirs.named_parameters():
        ours, gradient = names.our_name(name, model.config), parameter.grad.numpy()
        results[f"d.{ours}"] = gradient
    return results


def our_results(
    model: LanguageModel, ids: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    loss, gradients = model.loss_and_grads(ids, targets)
    results = {"logits": model(ids), "loss": np.asarray(loss, model.parameters.flat.dtype)}
    return results | {f"d.{name}": gradient for name, gradient in gradients.items()}


def their_training(model: LanguageModel) -> np.ndarray:
    """The losses of a short AdamW run on fixed batches."""
    import torch

    theirs = to_transformers(model)
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    losses = []
    for step in range(TRAINING_STEPS):
        _, loss = their_loss(theirs, *batch(model.config, (4, 13), seed=100 + step % 5))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def record() -> dict[str, np.ndarray]:
    answers = {}
    for name in EVERY_CONFIG:
        model = small_model(name)
        for label, shape in BATCHES.items():
            results = their_results(model, *batch(model.config, shape))
            answers |= {f"{name}/{label}/{key}": array for key, array in results.items()}
    for name in TRAINED:
        answers[f"{name}/training/losses"] = their_training(small_model(name))
    return answers

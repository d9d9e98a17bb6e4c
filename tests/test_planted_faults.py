"""Small faults, planted one at a time, that the default run must catch without PyTorch.

Each is a piece of the source that is changed in a copy of the package; the tests named beside it
must then fail. It is the tests that are tested here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import numgpt

PACKAGE, TESTS = Path(numgpt.__file__).parent, Path(__file__).parent
LAYERS = "layers/test_layers.py"
# What is changed: file, the text, what it becomes; and which tests must see it.
FAULTS = {
    "linear: dx by W": (
        "layers/linear.py",
        "matmul(dy_rows, weight.T)",
        "-matmul(dy_rows, weight.T)",
    ),
    "linear: the bias's gradient": (
        "layers/linear.py",
        "dbias.add_sum(dy_rows)",
        "dbias.add_sum(-dy_rows)",
    ),
    "layernorm: the path through rstd": (
        "layers/layernorm.py",
        "- x_hat * mean_product(g, x_hat)",
        "+ x_hat * mean_product(g, x_hat)",
    ),
    "layernorm: the path through the mean": ("layers/layernorm.py", "g - _mean(g)", "g + _mean(g)"),
    "rmsnorm: the path through rstd": (
        "layers/rmsnorm.py",
        "g - x_hat * mean_product",
        "g + x_hat * mean_product",
    ),
    "gelu (tanh): the slope": ("layers/gelu.py", "x * (1 - s) * slope", "x * (1 + s) * slope"),
    "gelu (erf): the density": ("layers/gelu.py", "+ x * density", "- x * density"),
    "relu: the slope at 0 and below": ("layers/relu.py", "dy, y > 0", "dy, y < 0"),
    "swiglu: the slope of silu": ("layers/swiglu.py", "1 + gate * (1 - s)", "1 - gate * (1 - s)"),
    "softmax: the sum over dp p": (
        "layers/softmax.py",
        "dp - (dp * p)",
        "dp + (dp * p)",
    ),
    "rope: backward turns back": (
        "layers/rope.py",
        "cos, -sin)",
        "cos, sin)",
    ),
    "attention: dy · y": ("layers/attention.py", "(dp - np.vecdot", "(dp + np.vecdot"),
    "attention: the scale of dq": ("layers/attention.py", "dq = scale *", "dq = -scale *"),
    "attention: the mask off by one": (
        "layers/attention_tiles.py",
        "(size, size), -np.inf, np.float32), -1)",
        "(size, size), -np.inf, np.float32), 0)",
    ),
    "embedding: repeated ids": (
        "runtime/accumulator.py",
        "np.add.reduceat(rows",
        "-np.add.reduceat(rows",
    ),
    "loss: onehot": (
        "layers/cross_entropy.py",
        "dz[np.arange(len(dz)), targets] += dlogp",
        "dz[np.arange(len(dz)), targets] -= dlogp",
    ),
    "log-probabilities: onehot - p": (
        "layers/cross_entropy.py",
        "-dlogp[:, None] / total",
        "dlogp[:, None] / total",
    ),
    "dropout: the scale": (
        "layers/dropout.py",
        "LEVELS / (LEVELS - dropped)",
        "1.0",
        "layers/test_layers.py layers/test_special_cases.py layers/test_by_hand.py",
    ),
    "attention: the scale of dropout": (
        "layers/attention_tiles.py",
        "* dtype.type(scale)",
        "* dtype.type(1)",
        "layers/test_special_cases.py layers/test_by_hand.py layers/test_layers.py",
    ),
    "adamw: the first moment's correction": (
        "training/adamw.py",
        "self.lr / (1 - beta_1**self.steps)",
        "self.lr",
        "training/test_adamw.py",
    ),
    "adamw: the second moment's correction": (
        "training/adamw.py",
        "1 / math.sqrt(1 - beta_2**self.steps)",
        "1.0",
        "training/test_adamw.py",
    ),
    "processors: the repetition penalty": (
        "generation/processors.py",
        "np.where(seen < 0, seen * penalty, seen / penalty)",
        "seen",
        "generation/test_processors.py",
    ),
    "processors: top-k": (
        "generation/processors.py",
        "top_k(logits, options.top_k)",
        "pass",
        "generation/test_processors.py",
    ),
    "processors: top-p": (
        "generation/processors.py",
        "tail <= 1 - p",
        "tail <= p",
        "generation/test_processors.py",
    ),
    "processors: min-p": (
        "generation/processors.py",
        "min_p(logits, options.min_p)",
        "pass",
        "generation/test_processors.py",
    ),
    "lora: the scale of dA": ("layers/lora.py", "scale * b)  # (N, O)", "b)  # (N, O)"),
    "lora: dx": ("layers/lora.py", "matmul(du, a)", "-matmul(du, a)"),
    "lora: the branch's dropout": (
        "layers/lora.py",
        "dropout_backward(x, dropout) if x is not None",
        "x if x is not None",
        "models/test_lora.py",
    ),
    "lora: what is merged": (
        "models/adapters.py",
        "delta if linear.transposed else delta.T",
        "-delta if linear.transposed else delta.T",
        "models/test_lora.py",
    ),
    "hooks: a replaced pattern's softmax": (
        "layers/attention_pattern.py",
        "p * (dp - np.vecdot(dp, p)[..., None])",
        "p * dp",
        "models/test_hooks.py",
    ),
    "hooks: the softmax of a replaced pattern": (
        "models/blocks.py",
        "scores_backward(dp_hooked, p, attention)",
        "scores_backward(dp_hooked, replacement, attention)",
        "models/test_hooks.py",
    ),
    "hooks: what a norm's derivative is taken at": (
        "models/modules.py",
        "cache.computed._replace(weight",
        "cache.seen._replace(weight",
        "models/test_hooks.py",
    ),
    "weights that lie apart: dx": (
        "runtime/weights.py",
        "add_into(out, matmul(dy[:, columns], matrix.T))",
        "pass",
        "models/test_models.py",
    ),
    "hooks: what a backward hook returns": (
        "models/blocks.py",
        'return hook.heads(f"hook_{name}", dx)',
        "return dx",
        "models/test_hooks.py",
    ),
    "examples: what is trained on": (
        "data/example_set.py",
        "np.where(example.loss_mask[1:], example.ids[1:], IGNORED)",
        "example.ids[1:]",
        "data/test_examples.py",
    ),
    "examples: the end of a turn": (
        "tokenizer/chat_habits.py",
        "stop += place + len(end)",
        "pass",
        "data/test_examples.py",
    ),
    "tuning: one count for the whole step": (
        "training/tasks.py",
        'weights=1 / max(1, totals["targets"])',
        "weights=1 / max(1, batch.counted)",
        "training/test_tuning.py",
    ),
    "batcher: a generator for each sequence": (
        "generation/decode.py",
        "default_rng([seed, prompt, continuation])",
        "default_rng(seed)",
        "generation/test_batcher.py",
    ),
    "batcher: the last slot moves into the hole": (
        "generation/batcher.py",
        "self.cache.move(len(self.decoding), slot)",
        "pass",
        "generation/test_batcher.py",
    ),
    "gradients: the second contribution": (
        "runtime/accumulator.py",
        "add_into(self.out, term)",
        "np.copyto(self.out, term)",
        "models/test_gradients.py",
    ),
    "KV cache: where a token goes": (
        "models/kv_cache.py",
        "k[:, :, 0], v[:, :, 0]",
        "k[:1, :, 0], v[:1, :, 0]",
        "models/test_kv_cache.py",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name, tmp_path):
    file, text, wrong, *tests = FAULTS[name]
    shutil.copytree(PACKAGE, tmp_path / "numgpt", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "weights").symlink_to(PACKAGE.parent / "weights")  # of the model that ships
    source = (tmp_path / "numgpt" / file).read_text(encoding="utf-8")
    assert source.count(text) >= 1, f"{file} does not say {text!r} any more"
    (tmp_path / "numgpt" / file).write_text(source.replace(text, wrong), encoding="utf-8")
    chosen = [str(TESTS / test) for test in (tests[0] if tests else LAYERS).split()]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not live"]
    options += [f"--rootdir={TESTS.parent}", f"--config-file={TESTS.parent / 'pyproject.toml'}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 1, f"nothing noticed it:\n{run.stdout[-2000:]}"
    assert "ImportError" not in run.stdout

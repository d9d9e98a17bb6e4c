"""Small faults, planted one at a time, that the default run must catch without PyTorch.

Each is a piece of the source that is changed in a copy of the package; the tests it stands under
must then fail. It is the tests that are tested here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import numgpt

PACKAGE, TESTS = Path(numgpt.__file__).parent, Path(__file__).parent
LAYERS = "layers/test_layers.py"
# Which tests must see it: in which file, what is changed, from which text into which.
FAULTS = {
    LAYERS: {
        "layers/linear.py": {
            "dx": ("matmul(dy_rows, weight.T)", "-matmul(dy_rows, weight.T)"),
            "the bias's gradient": ("add_sum(dy_rows)", "add_sum(-dy_rows)"),
        },
        "layers/layernorm.py": {
            "the path through rstd": ("- x_hat * mean_product(", "+ x_hat * mean_product("),
            "the path through the mean": ("g - _mean(g)", "g + _mean(g)"),
        },
        "layers/rmsnorm.py": {
            "the path through rstd": ("g - x_hat * mean_product", "g + x_hat * mean_product"),
        },
        "layers/gelu.py": {
            "tanh: the slope": ("dx *= x * (1 - s)", "dx *= x * (1 + s)"),
            "erf: the density": ("+ x * density", "- x * density"),
        },
        "layers/relu.py": {"the slope at 0 and below": ("dy, y > 0", "dy, y < 0")},
        "layers/swiglu.py": {"the slope of silu": ("silu * (1 - s)", "silu * (1 + s)")},
        "layers/softmax.py": {"the sum over dp p": ("dp - (dp * p)", "dp + (dp * p)")},
        "layers/rope.py": {"backward turns back": ("cos, -sin)", "cos, sin)")},
        "layers/attention.py": {
            "dy · y": ("(dp - np.vecdot", "(dp + np.vecdot"),
            "the scale of dq": ("dq = scale *", "dq = -scale *"),
        },
        "layers/attention_tiles.py": {
            "the mask off by one": ("-np.inf, np.float32), -1)", "-np.inf, np.float32), 0)"),
        },
        "layers/cross_entropy.py": {
            "onehot": ("targets] += dlogp", "targets] -= dlogp"),
            "onehot - p": ("-dlogp[:, None] / total", "dlogp[:, None] / total"),
        },
        "layers/lora.py": {
            "the scale of dA": ("scale * b)  # (N, O)", "b)  # (N, O)"),
            "dx": ("matmul(du, a)", "-matmul(du, a)"),
        },
        "runtime/accumulator.py": {"repeated ids": ("np.add.reduceat(", "-np.add.reduceat(")},
    },
    f"{LAYERS} layers/test_special_cases.py layers/test_by_hand.py": {
        "layers/dropout.py": {"the scale": ("LEVELS / (LEVELS - dropped)", "1.0")},
    },
    f"layers/test_special_cases.py layers/test_by_hand.py {LAYERS}": {
        "layers/attention_tiles.py": {
            "the scale of dropout": ("* dtype.type(scale)", "* dtype.type(1)"),
        },
    },
    "training/test_adamw.py": {
        "training/adamw.py": {
            "the first moment's correction": (" / (1 - beta_1**self.steps)", ""),
            "the second moment's correction": ("1 / math.sqrt(1 - beta_2**self.steps)", "1.0"),
        },
    },
    "generation/test_processors.py": {
        "generation/processors.py": {
            "the repetition penalty": (
                "np.where(seen < 0, seen * penalty, seen / penalty)",
                "seen",
            ),
            "top-k": ("top_k(logits, options.top_k)", "pass"),
            "top-p": ("tail <= 1 - p", "tail <= p"),
            "min-p": ("min_p(logits, options.min_p)", "pass"),
        },
    },
    "models/test_lora.py": {
        "layers/lora.py": {
            "the branch's dropout": ("dropout_backward(x, dropout) if x is", "x if x is"),
        },
        "models/adapters.py": {
            "what is merged": ("delta if linear.transposed", "-delta if linear.transposed"),
        },
    },
    "models/test_hooks.py": {
        "layers/attention_pattern.py": {
            "a replaced pattern's softmax": ("(dp - np.vecdot(dp, p)[..., None])", "dp"),
        },
        "models/blocks.py": {
            "the softmax of a replaced pattern": ("(dp_hooked, p, ", "(dp_hooked, replacement, "),
            "what a backward hook returns": (
                'return hook.heads(f"hook_{name}", dx)',
                "return dx",
            ),
        },
        "models/modules.py": {
            "what a norm's derivative is taken at": (
                "cache.computed._replace(weight",
                "cache.seen._replace(weight",
            ),
        },
    },
    "models/test_models.py": {
        "runtime/weights.py": {
            "dx of those apart": ("add_into(out, matmul(dy[:, columns], matrix.T))", "pass"),
        },
    },
    "models/test_gradients.py": {
        "runtime/accumulator.py": {
            "the second contribution": ("add_into(self.out, term)", "np.copyto(self.out, term)"),
        },
    },
    "models/test_kv_cache.py": {
        "models/kv_cache.py": {
            "where a token goes": ("k[:, :, 0], v[:, :, 0]", "k[:1, :, 0], v[:1, :, 0]"),
        },
    },
    "data/test_examples.py": {
        "data/example_set.py": {
            "what is trained on": (
                "np.where(example.loss_mask[1:], example.ids[1:], IGNORED)",
                "example.ids[1:]",
            ),
        },
        "tokenizer/chat_habits.py": {
            "the end of a turn": ("stop += place + len(end)", "pass"),
        },
    },
    "training/test_tuning.py": {
        "training/tasks.py": {
            "one count for the whole step": ('max(1, totals["targets"])', "max(1, batch.counted)"),
        },
    },
    "generation/test_batcher.py": {
        "generation/decode.py": {
            "a generator for each sequence": (
                "[options.seed, prompt, continuation]",
                "options.seed",
            ),
        },
        "generation/batcher.py": {
            "the last slot moves into the hole": (
                "self.cache.move(len(self.decoding), slot)",
                "pass",
            ),
        },
    },
}
CASES = {
    f"{file}: {what}": (tests, file, *change)
    for tests, files in FAULTS.items()
    for file, changes in files.items()
    for what, change in changes.items()
}


@pytest.mark.slow
@pytest.mark.parametrize(("tests", "file", "text", "wrong"), CASES.values(), ids=CASES)
def test_a_planted_fault_is_caught(tests, file, text, wrong, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "numgpt", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "weights").symlink_to(PACKAGE.parent / "weights")  # of the model that ships
    source = (tmp_path / "numgpt" / file).read_text(encoding="utf-8")
    assert text in source, f"{file} does not say {text!r} any more"
    (tmp_path / "numgpt" / file).write_text(source.replace(text, wrong), encoding="utf-8")
    chosen = [str(TESTS / test) for test in tests.split()]
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

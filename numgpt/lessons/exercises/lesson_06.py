"""Lesson 6: a whole GPT."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake
from numgpt.lessons.script import definitions

TEXTS, HEADS, WIDTH = 2, 3, 6


def _ids(rng):
    return [
        (rng.normal(size=(4, 3)), np.array([1, 0, 1, 1]), 5),
        (rng.normal(size=(2, 3)), np.array([2, 0]), 3),
    ]


def _parameters(rng, n_layer, vocabulary=7):
    shapes = {
        "wte": (vocabulary, WIDTH),
        "wpe": (5, WIDTH),
        "ln_f.weight": (WIDTH,),
        "ln_f.bias": (WIDTH,),
    }
    for h in [f"h.{layer}" for layer in range(n_layer)]:
        for name, n, m in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            shapes |= {f"{h}.{name}.weight": (n, m), f"{h}.{name}.bias": (m,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{h}.{name}.weight": (WIDTH,), f"{h}.{name}.bias": (WIDTH,)}
    return {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}


def _block(rng):
    x, p = rng.normal(size=(6 * TEXTS, WIDTH)), _parameters(rng, 2)
    return [(x, p, "h.0", TEXTS, HEADS), (x, p, "h.1", TEXTS, HEADS)]


def _block_backward(rng):
    cases = []
    for x, p, h, texts, heads in _block(rng):
        _, cache = definitions(6)["block_forward"](x, p, h, texts, heads)
        cases.append((rng.normal(size=x.shape), cache, p, h, heads))
    return cases


def _whole(rng):
    ids, targets = rng.integers(7, size=(2, TEXTS, 4))
    ids[0, :2] = 3
    other, wanted = rng.integers(5, size=(2, 3, 5))
    return [
        (_parameters(rng, 4), ids, targets, 4, HEADS),
        (_parameters(rng, 1, 5), other, wanted, 1, 2),
    ]


EXERCISES = (
    Exercise(
        "6.1",
        "embedding_backward",
        _ids,
        (
            Mistake(
                "np.add.at(gradient, ids, dx)",
                "gradient[ids] += dx",
                "an id that stands in the text several times keeps only its last contribution:"
                " gradient[ids] += dx does not add up. np.add.at does.",
            ),
            Mistake(
                "np.add.at(gradient, ids, dx)",
                "gradient[: len(dx)] += dx",
                "what comes back at a position belongs to the row of its id, not to the row of the"
                " position's number.",
            ),
            Mistake(
                "np.add.at(gradient, ids, dx)",
                "np.add.at(gradient, ids, dx / len(ids))",
                "off by a factor of N: sum or mean? Ways add up.",
            ),
        ),
        ("the gradient",),
    ),
    Exercise(
        "6.2",
        "block_forward",
        _block,
        (
            Mistake(
                'x = x + step(linear_forward, "attn.c_proj", y)',
                'x = step(linear_forward, "attn.c_proj", y)',
                "attention replaces the stream: it is to be added to x.",
            ),
            Mistake(
                'x = x + step(linear_forward, "mlp.c_proj", gelu_forward(y))',
                'x = step(linear_forward, "mlp.c_proj", gelu_forward(y))',
                "the MLP replaces the stream: it is to be added to x.",
            ),
            Mistake(
                'step(linear_forward, "mlp.c_proj", gelu_forward(y))',
                'step(linear_forward, "mlp.c_proj", y)',
                "the MLP's bend is missing: GELU stands between its two layers.",
            ),
            Mistake(
                'y = step(layernorm_forward, "ln_1", x)\n',
                'y = x = step(layernorm_forward, "ln_1", x)\n',
                "the stream itself is not normalised: attention reads it through ln_1, and is added"
                " to x as it was.",
            ),
            Mistake(
                "attend(y, texts, heads)",
                "attend(y, heads, texts)",
                "how many texts and how many heads are exchanged: attend(qkv, texts, heads).",
            ),
            Mistake(
                'y = step(layernorm_forward, "ln_2", x)',
                'step(layernorm_forward, "ln_2", x); y = x',
                "the MLP reads the stream through its norm, ln_2.",
            ),
            Mistake(
                'y = step(layernorm_forward, "ln_1", x)',
                'step(layernorm_forward, "ln_1", x); y = x',
                "attention reads the stream through its norm, ln_1.",
            ),
            Mistake(
                'y = step(layernorm_forward, "ln_2", x)\n',
                'y = x = step(layernorm_forward, "ln_2", x)\n',
                "the stream itself is not normalised: the MLP reads it through ln_2, and is added"
                " to x as it was.",
            ),
            Mistake(
                'x = x + step(linear_forward, "attn.c_proj", y)',
                'step(linear_forward, "attn.c_proj", y); x = x + y',
                "between attention and the stream stands a linear layer, attn.c_proj.",
            ),
        ),
        ("y", "cache"),
    ),
    Exercise(
        "6.3",
        "block_backward",
        _block_backward,
        (
            Mistake(
                'dx = dx + norm("ln_2", dy)',
                'dx = norm("ln_2", dy)',
                "the direct way past the MLP is missing: through x + f(x), dx goes on as it is, and"
                " the branch's is added.",
            ),
            Mistake(
                'dx = dx + norm("ln_1", dy)',
                'dx = norm("ln_1", dy)',
                "the direct way past attention is missing: through x + f(x), dx goes on as it is,"
                " and the branch's is added.",
            ),
            Mistake(
                'gelu_backward(dy, cache["mlp"])',
                "dy",
                "GELU's backward is missing between the MLP's two layers.",
            ),
            Mistake(
                'dx = dx + norm("ln_2", dy)\n    dy = linear("attn.c_proj", dx)',
                'dy = linear("attn.c_proj", dx + 0 * norm("ln_2", dy))',
                "what comes out of the MLP's branch also reaches attention: add it to dx first.",
            ),
            Mistake(
                'dx = dx + norm("ln_2", dy)',
                'norm("ln_2", dy); dx = dx + dy',
                "the MLP read the stream through ln_2: its branch comes back through that, too.",
            ),
            Mistake(
                'dx = dx + norm("ln_1", dy)',
                'norm("ln_1", dy); dx = dx + dy',
                "attention read the stream through ln_1: its branch comes back through that, too.",
            ),
            Mistake(
                'dy = linear("attn.c_proj", dx)',
                'linear("attn.c_proj", dx); dy = dx',
                "between attention and the stream stands a linear layer, attn.c_proj.",
            ),
        ),
        ("dx", "the dictionary of gradients"),
    ),
    Exercise(
        "6.4",
        "gpt",
        _whole,
        (
            Mistake(
                'unembedding + embedding_backward(dx, ids.ravel(), len(p["wte"]))',
                'embedding_backward(dx, ids.ravel(), len(p["wte"]))',
                "wte is used twice, as embedding and as unembedding: the second contribution is"
                " missing.",
            ),
            Mistake(
                'unembedding + embedding_backward(dx, ids.ravel(), len(p["wte"]))',
                "unembedding",
                "wte is used twice, as embedding and as unembedding: that of the embedding is"
                " missing.",
            ),
            Mistake(
                ".sum(axis=0)",
                ".mean(axis=0)",
                "off by a factor of B: sum or mean? Each text uses the row of a position, and ways"
                " add up.",
            ),
            Mistake(
                'y, x_hat, rstd = layernorm_forward(x, p["ln_f.weight"], p["ln_f.bias"])',
                '_, x_hat, rstd = layernorm_forward(x, p["ln_f.weight"], p["ln_f.bias"]); y = x',
                "the last norm, ln_f, is missing before the logits.",
            ),
            Mistake(
                "reversed(range(n_layer))",
                "range(n_layer)",
                "backward goes through the blocks in reverse, the last one first.",
            ),
            Mistake(
                'p["wte"][ids] + p["wpe"][:T]',
                'p["wte"][ids]',
                "positions are missing: add wpe's rows to the embeddings.",
            ),
        ),
        ("loss", "the dictionary of gradients"),
    ),
)

# %% [markdown]
# # 6 Your own GPT
#
# You have every part: linear layers, softmax and its loss, LayerNorm, GELU, attention, each with a
# backward that you derived. This lesson puts them together. At its end your functions compute the
# loss of a GPT-2 and the gradient of every one of its parameters, and they agree with numgpt's own
# to twelve digits. (Those are tested against PyTorch, and with OpenAI's weights.)

# %%
import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)

# %% [markdown]
# `yours` takes your functions out of the exercises' cells in the notebooks beside this one: save
# those first. Where one is missing, or its check fails, you get the course's, and are told. These
# are their arguments:
#
# | function | arguments | returns |
# | --- | --- | --- |
# | `linear_forward` | x, weight, bias | y, cache |
# | `linear_backward` | dy, cache | dx, dweight, dbias |
# | `cross_entropy` | z, targets (N,) | loss, dz |
# | `layernorm_forward` | x, weight, bias | y, x_hat, rstd |
# | `layernorm_backward` | dy, x_hat, rstd, weight | dx, dweight, dbias |
# | `gelu_backward` | dy, x | dx |

# %%
linear_forward, linear_backward = yours("2.3", "2.4")
cross_entropy = yours("3.3")
layernorm_forward, layernorm_backward, gelu_backward = yours("4.1", "4.2", "4.4")
attention, attention_backward, split_heads = yours("5.1", "5.2", "5.3")

# %% [markdown]
# ## The way in
#
# An id is a number without a meaning, so the model has a table with a row of $C$ numbers for each
# id, its *embedding* (GPT-2 calls it `wte`), and another with a row for each position, `wpe`. What
# goes in at position $t$ is the sum of two rows.
#
# Backward of looking up a row: what comes back belongs to that row. If an id stands in the text
# three times, its row gets three contributions, and **ways add up**.
#
# **Exercise 6.1.** NumPy has a trap here that everyone falls into once. The check will tell.

# %% exercise="6.1"
def embedding_backward(dx, ids, vocabulary):
    """dx (N, C), ids (N,) -> the table's gradient (V, C)."""
    # solution
    gradient = np.zeros((vocabulary, dx.shape[1]))
    np.add.at(gradient, ids, dx)
    return gradient

# %%
check(embedding_backward)

# %% [markdown]
# ## The residual stream
#
# From here on a row of $C$ numbers goes along for each position: the *residual stream*. No layer
# replaces it. Each one reads it (through a LayerNorm), and **adds** something:
#
# $$ \begin{gathered}
#    x \leftarrow x + \operatorname{attention}(\operatorname{norm}_1(x)) \\[4pt]
#    x \leftarrow x + \operatorname{mlp}(\operatorname{norm}_2(x))
#    \end{gathered} $$
#
# These two lines are a block, and the smallest GPT-2 is twelve of them. Attention moves information
# between positions; the MLP (multi-layer perceptron: a linear layer to $4C$ features, GELU, a
# linear layer back to $C$) works on each position by itself. Why add? Look at it backwards. Through
# $x + f(x)$,
#
# $$ \mathrm{d}x = \mathrm{d}y + f'^\top \mathrm{d}y $$
#
# The gradient has a direct way, past all the blocks, to the very first. It is neither scaled nor
# bent on the way. That is what made deep networks trainable at all (He et al. 2015,
# arXiv:1512.03385).
#
# In the model that ships with numgpt, you can watch the stream grow from the embeddings on, as each
# block adds its part:

# %%
model, tokenizer = numgpt.load("shakespeare")
_, activations = model.run_with_cache(tokenizer.encode("To be, or not to be"))
layers = model.config.n_layer
sizes = {
    part: [np.linalg.norm(activations[f"blocks.{i}.{name}"], axis=-1).mean() for i in range(layers)]
    for part, name in (
        ("stream", "hook_resid_post"),
        ("attention", "hook_attn_out"),
        ("mlp", "hook_mlp_out"),
    )
}
before = np.linalg.norm(activations["blocks.0.hook_resid_pre"], axis=-1).mean()
_, axis = figure()
axis.plot(range(layers + 1), [before, *sizes.pop("stream")], marker="o", label="stream")
for part, values in sizes.items():
    axis.plot(range(1, layers + 1), values, marker="o", label=part)
axis.set_xlabel("after block")
axis.set_ylabel("mean length of the vector")
axis.legend();

# %% [markdown]
# ## A block
#
# Rows of all texts lie one below the other, text by text, $N = B \cdot T$, as linear layers and
# norms do not care which text a row is of. Only attention does: it is done for each text and head
# by itself. That part is here; one linear layer makes queries, keys and values at once, side by
# side, $3C$ features.

# %%
def gelu_forward(x):
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(u))


def merge_heads(x):
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def attend(qkv, texts, heads):
    """qkv (N, 3C); texts and heads, how many -> y (N, C), cache."""
    kept, made = [], []
    for rows in np.split(qkv, texts):
        q, k, v = (split_heads(part, heads) for part in np.split(rows, 3, axis=1))
        each = [attention(*of_head) for of_head in zip(q, k, v, strict=True)]
        kept.append((q, k, v, [p for _, p in each]))
        made.append(merge_heads(np.array([y for y, _ in each])))
    return np.concatenate(made), kept


def attend_backward(dy, kept, heads):
    """dy (N, C) -> dqkv (N, 3C)."""
    made = []
    for rows, (q, k, v, p) in zip(np.split(dy, len(kept)), kept, strict=True):
        of_heads = zip(split_heads(rows, heads), q, k, v, p, strict=True)
        gradients = zip(*(attention_backward(*of_head) for of_head in of_heads), strict=True)
        made.append(np.hstack([merge_heads(np.array(part)) for part in gradients]))
    return np.concatenate(made)

# %% [markdown]
# Parameters come in a dictionary `p`, under GPT-2's own names: for block 0 `h.0.ln_1.weight`,
# `h.0.ln_1.bias`, `h.0.attn.c_attn.weight` and so on. These are the steps of a block, in order, and
# what backward wants of each. In the cache it stands under the name in the last column:
#
# | step | parameters | for backward | under the name |
# | --- | --- | --- | --- |
# | layernorm_forward | `h.0.ln_1` | (x_hat, rstd) | `ln_1` |
# | linear_forward | `h.0.attn.c_attn` | its cache | `attn.c_attn` |
# | attend | | its cache | `attn` |
# | linear_forward | `h.0.attn.c_proj` | its cache | `attn.c_proj` |
# | **add to x** | | | |
# | layernorm_forward | `h.0.ln_2` | (x_hat, rstd) | `ln_2` |
# | linear_forward | `h.0.mlp.c_fc` | its cache | `mlp.c_fc` |
# | gelu_forward | | its input | `mlp` |
# | linear_forward | `h.0.mlp.c_proj` | its cache | `mlp.c_proj` |
# | **add to x** | | | |
#
# **Exercise 6.2.** Forward.

# %% exercise="6.2"
def block_forward(x, p, h, texts, heads):
    """x (N, C), p by name, h such as "h.0"; texts and heads, how many -> y (N, C), cache {…}."""
    # solution
    cache = {}

    def step(function, name, x):
        y, *kept = function(x, p[f"{h}.{name}.weight"], p[f"{h}.{name}.bias"])
        cache[name] = tuple(kept) if function is layernorm_forward else kept[0]
        return y

    y = step(layernorm_forward, "ln_1", x)
    y = step(linear_forward, "attn.c_attn", y)
    y, cache["attn"] = attend(y, texts, heads)
    x = x + step(linear_forward, "attn.c_proj", y)
    y = step(layernorm_forward, "ln_2", x)
    y = cache["mlp"] = step(linear_forward, "mlp.c_fc", y)
    x = x + step(linear_forward, "mlp.c_proj", gelu_forward(y))
    return x, cache

# %%
check(block_forward)

# %% [markdown]
# **Exercise 6.3.** Backward: the same lines from the last to the first. `dx` is the gradient that
# goes along the stream; at each of the two sums it goes on as it is, *and* into the branch, and
# what comes out of the branch is added to it. Gradients of parameters go into a dictionary under
# the parameters' full names.

# %% exercise="6.3"
def block_backward(dx, cache, p, h, heads):
    """dx (N, C), by the block's output; cache as block_forward makes it -> dx (N, C), by its input,
    gradients {name: …}."""
    # solution
    g = {}

    def linear(name, dy):
        dx, g[f"{h}.{name}.weight"], g[f"{h}.{name}.bias"] = linear_backward(dy, cache[name])
        return dx

    def norm(name, dy):
        weight = p[f"{h}.{name}.weight"]
        result = layernorm_backward(dy, *cache[name], weight)
        dx, g[f"{h}.{name}.weight"], g[f"{h}.{name}.bias"] = result
        return dx

    dy = linear("mlp.c_proj", dx)
    dy = linear("mlp.c_fc", gelu_backward(dy, cache["mlp"]))
    dx = dx + norm("ln_2", dy)
    dy = linear("attn.c_proj", dx)
    dy = linear("attn.c_attn", attend_backward(dy, cache["attn"], heads))
    dx = dx + norm("ln_1", dy)
    return dx, g

# %%
check(block_backward)

# %% [markdown]
# ## The way out
#
# After the last block there is one more norm, `ln_f`, and then the logits: how well does the vector
# in the stream fit each id's row of the table? $z = x\,W_{te}^\top$, **the same table** as on the
# way in. So `wte` gets gradients from two sides, as embedding and as unembedding, and ways add up.
#
# For $z = x\,W^\top$ lesson 2 gives $\mathrm{d}x = \mathrm{d}z\,W$ and
# $\mathrm{d}W = \mathrm{d}z^\top x$.
#
# The parameters outside of the blocks are `wte` (V, C), `wpe` (one row for each position that a
# text may have, C), `ln_f.weight` and `ln_f.bias`. A text may be shorter than `wpe`: rows that were
# not used have a gradient of 0, and row $t$ is used by position $t$ of every text. (`cross_entropy`
# wants its targets in one row: `targets.ravel()`.)
#
# **Exercise 6.4.** All of GPT. The parts are yours.

# %% exercise="6.4"
def gpt(p, ids, targets, n_layer, n_head):
    """ids, targets (B, T), parameters by name -> loss, gradients by name."""
    # solution
    (B, T), caches, g = ids.shape, [], {}
    x = (p["wte"][ids] + p["wpe"][:T]).reshape(B * T, -1)
    for layer in range(n_layer):
        x, cache = block_forward(x, p, f"h.{layer}", B, n_head)
        caches.append(cache)
    y, x_hat, rstd = layernorm_forward(x, p["ln_f.weight"], p["ln_f.bias"])
    loss, dz = cross_entropy(y @ p["wte"].T, targets.ravel())

    unembedding, dy = dz.T @ y, dz @ p["wte"]
    result = layernorm_backward(dy, x_hat, rstd, p["ln_f.weight"])
    dx, g["ln_f.weight"], g["ln_f.bias"] = result
    for layer in reversed(range(n_layer)):
        dx, of_block = block_backward(dx, caches[layer], p, f"h.{layer}", n_head)
        g |= of_block
    g["wte"] = unembedding + embedding_backward(dx, ids.ravel(), len(p["wte"]))
    g["wpe"] = np.zeros_like(p["wpe"])
    g["wpe"][:T] = dx.reshape(B, T, -1).sum(axis=0)
    return loss, g

# %%
check(gpt)

# %% [markdown]
# ## Against numgpt's own
#
# Three blocks of four heads, in float64, on two texts of ten ids. numgpt joins some layers, cuts
# others into tiles, and uses several cores; yours is a page of NumPy. Loss and all gradients have
# to be the same.

# %%
config = numgpt.GPTConfig(n_layer=3, n_head=4, n_embd=16, n_positions=12, vocab_size=29)
theirs = numgpt.GPT(config, dtype=np.float64)
for array in theirs.parameters.values():
    array += 0.1 * rng.normal(size=array.shape)
ids, targets = rng.integers(29, size=(2, 2, 10))
their_loss, their_gradients = theirs.loss_and_grads(ids, targets)
loss, gradients = gpt(dict(theirs.parameters), ids, targets, 3, 4)
print(f"loss  {loss:.12f}, theirs {their_loss:.12f}")
worst = max(abs(gradients[name] - their_gradients[name]).max() for name in their_gradients)
print(
    f"{len(gradients)} gradients, the largest difference in any number of any of them: {worst:.1e}"
)
assert worst < 1e-12
assert abs(loss - their_loss) < 1e-12

# %% [markdown]
# That is GPT-2. Larger ones have more blocks and wider rows, and no new idea. (numgpt's shortest
# version of this page is the function `gpt` in `numgpt/lessons/gpt.py`, which the README shows.
# Read it now: you will know every line.)
#
# Does it learn? Sixty steps against the gradient, on one line of text. The steps are large, so the
# loss jumps now and then; lesson 7 mends that.

# %%
characters = sorted(set("to be or not to be, that is the question"))
line = np.array([[characters.index(c) for c in "to be or not to be, that is the question"]])
config = numgpt.GPTConfig(
    n_layer=1, n_head=2, n_embd=16, n_positions=40, vocab_size=len(characters)
)
p = {name: w.copy() for name, w in numgpt.GPT(config, dtype=np.float64, seed=1).parameters.items()}
losses = []
for _ in range(60):
    loss, g = gpt(p, line[:, :-1], line[:, 1:], 1, 2)
    losses.append(loss)
    for name in p:
        p[name] = p[name] - 0.5 * g[name]
_, axis = figure()
axis.plot(losses)
axis.set_xlabel("step")
axis.set_ylabel("loss");

# %% [markdown]
# ## What to take along
#
# - Embeddings in, blocks that add to a stream, a norm, the table again: that is a GPT.
# - Backward is the same page from the bottom to the top.
# - Whatever is used twice gets both gradients: an id that repeats, the table, the stream.
#
# **Where this is in numgpt:** `lessons/gpt.py` on one screen; `models/blocks.py` and
# `models/gpt2.py` with what a real library needs beside it.

# %% [markdown]
# # 9 Real weights: what Llama changes
#
# A model is a file of numbers and a page of code that says what they are for. You have written that
# page for GPT-2. Nearly all open models since 2023 (Llama, Mistral, Qwen, SmolLM) are another page,
# and a short one: four parts of GPT-2 are replaced. This lesson derives what takes their place, and
# then loads a real model that is made of them.
#
# | part | GPT-2 | Llama | why |
# | --- | --- | --- | --- |
# | norm | LayerNorm | RMSNorm | cheaper, as good |
# | position | a table of rows | RoPE: queries and keys are turned | distances, not places |
# | MLP | GELU | SwiGLU: a gate beside it | better at the same size |
# | attention | as many keys as queries | groups share keys and values | a smaller KV cache |
#
# Biases are gone as well, nearly everywhere.

# %%
import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)

# %% [markdown]
# ## RMSNorm
#
# Leave out the mean (Zhang & Sennrich 2019, arXiv:1910.07467):
#
# $$ \hat x = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \varepsilon}} \qquad y = w \odot \hat x $$
#
# In lesson 4 there were three ways from $x_j$ to $\hat x_i$. The one through the mean is gone. With
# $g = \mathrm{d}y \odot w$ and $r$ the factor that $x$ is multiplied with, what is left of the
# formula is yours to find.
#
# **Exercise 9.1.** Both gradients; there is no bias.

# %% exercise="9.1"
def rmsnorm_backward(dy, x, weight, eps=1e-6):
    """dy, x (N, C), weight (C,) -> dx (N, C), dweight (C,)."""
    # solution
    rstd = 1 / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps)
    x_hat, g = x * rstd, dy * weight
    dx = rstd * (g - x_hat * (g * x_hat).mean(axis=1, keepdims=True))
    return dx, (dy * x_hat).sum(axis=0)

# %%
check(rmsnorm_backward)

# %% [markdown]
# ## RoPE: positions as angles
#
# GPT-2 adds a learnt row for each position: position 1025 does not exist for it. And what matters
# is rarely "this is word 613"; it is "this is three words back". *Rotary position embedding* (Su et
# al. 2021, arXiv:2104.09864) puts the position into the **angle** of queries and keys.
#
# Take two features of a query as a point in a plane, and turn it by an angle of $t\,\omega$ at
# position $t$. Do the same with the keys. The dot product of two vectors depends on the angle
# between them: if one was turned by $t\,\omega$ and the other by $s\,\omega$, on $(t - s)\,\omega$.
# So of the positions, the scores see how far apart two of them are, and nothing else. (Far beyond
# the distances that it was trained on, a model still fails.)
#
# A head has $D$ features, so $D/2$ planes, each with its own speed $\omega_i = 10000^{-2i/D}$: the
# first turns by a radian a position and tells neighbours apart, the last by little more than a
# ten-thousandth, and tells chapters apart. Feature $i$ of the first half and feature $i$ of the
# second half make plane $i$:
#
# $$ y_1 = x_1\cos a - x_2\sin a \qquad y_2 = x_1\sin a + x_2\cos a, \qquad a = t\,\omega_i $$

# %%
_, axis = figure(width=6)
for plane, speed in enumerate(10000.0 ** -(np.arange(0, 16, 4) / 16)):
    axis.plot(np.cos(np.arange(100) * speed), label=f"plane {2 * plane} of 8")
axis.set_xlabel("distance of two positions")
axis.set_ylabel("cosine of the angle between")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5));

# %% [markdown]
# **Exercise 9.2.** Turn each pair of features by its angle.

# %% exercise="9.2"
def rope(x, angles):
    """x (T, D), angles (T, D/2), of each position and plane -> y (T, D)."""
    # solution
    x1, x2 = np.split(x, 2, axis=1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.hstack([x1 * cos - x2 * sin, x1 * sin + x2 * cos])

# %%
check(rope)

# %% [markdown]
# See that only the distance counts: the score of a query at $t$ with a key at $t - 3$, for all $t$.

# %%
q, k = rng.normal(size=(2, 8))
angles = np.arange(50)[:, None] * 10000.0 ** -(np.arange(0, 8, 2) / 8)
turned_q, turned_k = rope(np.tile(q, (50, 1)), angles), rope(np.tile(k, (50, 1)), angles)
scores = (turned_q[3:] * turned_k[:-3]).sum(axis=1)
print(f"smallest {scores.min():.12f}, largest {scores.max():.12f}")

# %% [markdown]
# Backward: a rotation is a matrix $R$, so $\mathrm{d}x = R^\top \mathrm{d}y$, and the transpose of
# a rotation is the rotation *back*. The function below was written by someone in a hurry. **Find
# the fault.**
#
# **Exercise 9.3.** Mend it.

# %% exercise="9.3"
def rope_backward(dy, angles):
    """dy (T, D), angles (T, D/2) -> dx (T, D)."""
    #: return rope(dy, angles)
    # solution
    return rope(dy, -angles)

# %%
check(rope_backward)

# %% [markdown]
# ## SwiGLU
#
# GPT-2's MLP bends one projection. Llama has two of them, $\text{gate} = xW_g$ and
# $\text{up} = xW_u$, and multiplies (Shazeer 2020, arXiv:2002.05202): the gate, bent, decides how
# much of `up` passes. A third matrix leads back to the stream.
#
# $$ \begin{gathered}
#    y = \operatorname{silu}(\text{gate}) \odot \text{up} \qquad
#    \operatorname{silu}(z) = z\,\sigma(z) \\[4pt]
#    \sigma(z) = \frac{1}{1 + e^{-z}}
#    \end{gathered} $$
#
# For the backward you need $\sigma' = \sigma(1 - \sigma)$ and the product rule, twice.
#
# **Exercise 9.4.** By the gate, and by what it lets pass.

# %% exercise="9.4"
def swiglu_backward(dy, gate, up):
    """dy, gate, up (N, F) -> dgate (N, F), dup (N, F)."""
    # solution
    s = 1 / (1 + np.exp(-gate))
    return dy * up * s * (1 + gate * (1 - s)), dy * gate * s

# %%
check(swiglu_backward)

# %% [markdown]
# ## Groups share keys and values
#
# The KV cache holds keys and values of every head. Let several query heads share one pair of them
# (Ainslie et al. 2023, arXiv:2305.13245): with 9 query heads and 3 KV heads, query head $h$ looks
# at KV head $h // 3$, and the cache is a third.
#
# Forward, that is `np.repeat(k, 3, axis=0)`, and attention as before. What is its backward? A key
# is now used by three query heads, and ways add up.
#
# **Exercise 9.5.** The size of a group is $H/K$.

# %% exercise="9.5"
def shared_backward(dk, kv_heads):
    """dk (H, T, D), as each query head gives it -> (K, T, D), that of the shared keys."""
    # solution
    H, T, D = dk.shape
    return dk.reshape(kv_heads, H // kv_heads, T, D).sum(axis=1)

# %%
check(shared_backward)

# %% [markdown]
# All five against numgpt's own, which `models/llama.py` puts together:

# %%
def apart(ours, theirs):
    return max(float(abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


x, weight, dy = rng.normal(size=(4, 8)), rng.normal(size=8), rng.normal(size=(4, 8))
_, cache = numgpt.layers.rmsnorm_forward(x, weight)
theirs = numgpt.layers.rmsnorm_backward(dy, cache)
print("rmsnorm", apart(rmsnorm_backward(dy, x, weight), theirs))
frequencies = numgpt.layers.rope_frequencies(8)
rotation = numgpt.layers.rope_rotation(np.arange(4)[None], frequencies, np.float64)
their_y, cache = numgpt.layers.rope_forward(x[None, None], rotation)
theirs = their_y[0, 0], numgpt.layers.rope_backward(dy[None, None], cache)[0, 0]
angles = np.arange(4)[:, None] * frequencies
print("rope   ", apart((rope(x, angles), rope_backward(dy, angles)), theirs))
up = rng.normal(size=(4, 8))
_, cache = numgpt.layers.swiglu_forward(x, up)
print("swiglu ", apart(swiglu_backward(dy, x, up), numgpt.layers.swiglu_backward(dy, cache)))
q, (k, v) = rng.normal(size=(1, 6, 5, 4)), rng.normal(size=(2, 1, 2, 5, 4))
dy = rng.normal(size=q.shape)
_, cache = numgpt.layers.attention_forward(q, k, v)
_, shared, _ = numgpt.layers.attention_backward(dy, cache)
_, cache = numgpt.layers.attention_forward(q, *(np.repeat(a, 3, axis=1) for a in (k, v)))
_, each, _ = numgpt.layers.attention_backward(dy, cache)
print("groups ", apart([shared_backward(each[0], 2)], shared))

# %% [markdown]
# ## A real model
#
# SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) is one of the smallest models that can answer at
# all, and often wrongly. `numgpt download smollm2` in a terminal fetches it once: 98 MB, as its
# weights are rounded to 4 bits. If it is not there, the rest of this lesson takes the model that
# ships, which is a GPT-2 and can only continue a text.

# %%
try:
    model, tokenizer = numgpt.load("smollm2")
except (OSError, ValueError) as error:
    print(error)
    model, tokenizer = numgpt.load("shakespeare")
print(model)
for name in [name for name in model.parameters if ".0." in name]:
    print(f"{name:45} {model.parameters[name].shape}")

# %% [markdown]
# These are the names in the published file, and you know what each is for: two norms, four matrices
# of attention (of which those for keys and values are narrower), three of SwiGLU. Nothing else is
# in a block. (Each matrix lies in the file as (O, I), the other way round than GPT-2's.)

# %%
config = model.config
print(f"{config.layers} blocks, {config.width} wide; {model.num_parameters():,} parameters")
print(f"KV cache: {2 * config.layers * config.kv_heads * config.head_size * 4:,} bytes a position")
heads = config.width // config.head_size
print(f"without shared heads: {2 * config.layers * heads * config.head_size * 4:,}")

# %%
prompt = "What is the capital of France?"
if tokenizer.chat_template is not None:
    chat = numgpt.Chat(model, tokenizer, do_sample=False, max_new_tokens=60)
    print("".join(chat.ask(prompt)))
else:
    ids = model.generate(tokenizer.encode(prompt), max_new_tokens=40, do_sample=False)[0]
    print(tokenizer.decode(ids))

# %% [markdown]
# What does it *know*? Ask what comes next, and see how sure it is:

# %%
_, axes = figure(1, 2, width=5)
for axis, text in zip(axes, ("The capital of Italy is", "The opposite of hot is"), strict=True):
    logits = model(tokenizer.encode(text))[0, -1].astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    best = np.argsort(-p)[:8]
    axis.barh(range(8)[::-1], p[best])
    axis.set_yticks(range(8)[::-1], [repr(tokenizer.decode([id])) for id in best])
    axis.set_title(text)
    axis.set_xlabel("probability")

# %% [markdown]
# ## What to take along
#
# - Llama is GPT-2 with four parts replaced. The stream, the two branches, the loss are the same.
# - RMSNorm's backward is LayerNorm's without the mean.
# - A rotation's backward turns back.
# - What is shared gets the sum of what all give back.
#
# **Where this is in numgpt:** `layers/rmsnorm.py`, `layers/rope.py`, `layers/swiglu.py`, and a
# page, `models/llama.py`. `formats/` reads the files.

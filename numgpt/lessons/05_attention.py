# %% [markdown]
# # 5 Attention
#
# Everything so far was done to each word by itself. Attention is the one place in a GPT where words
# exchange something. It is two matrix products with a softmax between them. We do it on paper
# first, then backwards, then for several heads, and at last in tiles, which is how a text of a
# hundred thousand words fits into memory.

# %%
import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)

# %% [markdown]
# ## A question to all that came before
#
# Each position of a text has a row of $C$ numbers (lesson 6 says where they come from). Three
# linear layers make three vectors of $D$ numbers of it:
#
# - a **query** $q_i$: what am I looking for?
# - a **key** $k_i$: what am I found by?
# - a **value** $v_i$: what do I tell whoever looks at me?
#
# How well $q_i$ and $k_j$ fit is their dot product. A softmax makes weights of that, and what comes
# out at $i$ is the weighted mean of the values:
#
# $$ s_{ij} = \frac{q_i \cdot k_j}{\sqrt{D}} \qquad p_i = \operatorname{softmax}(s_i) \qquad
#    y_i = \sum_j p_{ij} v_j $$
#
# $D$ is the length of a query. The dot product of two vectors of $D$ independent random numbers,
# each of mean 0 and variance 1, has a standard deviation of $\sqrt{D}$; dividing by that keeps the
# softmax from answering with 0 and 1 before anything has been learnt.
#
# And a rule: a position sees itself and those **before** it, never one that comes later. The model
# is to guess what comes next, and must not look. So the scores of later keys are replaced by
# $-\infty$, whose exponential is 0.
#
# ## On paper
#
# Three positions, $D = 1$, so that $\sqrt{D} = 1$:
#
# | | $q$ | $k$ | $v$ |
# | --- | --- | --- | --- |
# | 0 | 1 | 0 | 3 |
# | 1 | 0 | 1 | 6 |
# | 2 | 1 | ln 2 | 9 |
#
# - Position 0 sees only itself: $y_0 = 3$.
# - Position 1 has $q = 0$, so all scores are 0 and both weights ½: $y_1 = 4.5$.
# - Position 2 has scores $0, 1, \ln 2$, with exponentials $1, e, 2$ and the sum 5.718. So
#   $y_2 = (1 \cdot 3 + e \cdot 6 + 2 \cdot 9)/5.718 = 6.525$.
#
# **Exercise 5.1.** One head. (`np.tri(T, dtype=bool)` is True where the column is at most the row.)

# %% exercise="5.1"
def attention(q, k, v):
    """q, k, v (T, D) -> y (T, D), p (T, T): each row sees itself and those before it."""
    # solution
    T, D = q.shape
    s = np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(D), -np.inf)
    p = np.exp(s - s.max(axis=1, keepdims=True))
    p = p / p.sum(axis=1, keepdims=True)
    return p @ v, p

# %%
check(attention)

# %%
q, k, v = np.array([[1.0, 0, 1], [0, 1, np.log(2)], [3, 6, 9]])[..., None]
y, p = attention(q, k, v)
print(y.ravel())
_, axis = figure(width=3)
axis.imshow(p, cmap="Blues", vmin=0, vmax=1.6)
axis.set_xticks(range(3))
axis.set_yticks(range(3))
axis.set_xlabel("key j")
axis.set_ylabel("query i")
for i, j in zip(*np.tril_indices(3), strict=True):
    axis.text(j, i, f"{p[i, j]:.2f}", ha="center", va="center", color="black")

# %% [markdown]
# ## Backwards
#
# Three steps, each of which you have derived: a product, a softmax, a product. In reverse:
#
# 1. $Y = PV$ is lesson 2's product: $\mathrm{d}V = P^\top \mathrm{d}Y$ and
#    $\mathrm{d}P = \mathrm{d}Y\,V^\top$.
# 2. $P$ is lesson 3's softmax:
#    $\mathrm{d}S = P \odot (\mathrm{d}P - \text{row sums of } \mathrm{d}P \odot P)$. Where a later
#    key was hidden, $P$ is 0, so nothing flows there; the mask needs no line of its own.
# 3. $S = QK^\top/\sqrt{D}$ is a product again: $\mathrm{d}Q = \mathrm{d}S\,K/\sqrt{D}$ and
#    $\mathrm{d}K = \mathrm{d}S^\top Q/\sqrt{D}$.
#
# **Exercise 5.2.** Mind the transposes: $P$, $\mathrm{d}P$ and $\mathrm{d}S$ are square, so NumPy
# does not complain where one of theirs is missing.

# %% exercise="5.2"
def attention_backward(dy, q, k, v, p):
    """dy, q, k, v (T, D), p (T, T) -> dq, dk, dv (T, D)."""
    # solution
    scale = 1 / np.sqrt(q.shape[1])
    dv = p.T @ dy
    dp = dy @ v.T
    ds = p * (dp - (dp * p).sum(axis=1, keepdims=True))
    dq = scale * ds @ k
    dk = scale * ds.T @ q
    return dq, dk, dv

# %%
check(attention_backward)

# %% [markdown]
# ## Several heads
#
# One softmax can hardly look at two things at once. So the $C$ features are cut into $H$ *heads* of
# $D = C/H$ features each, every head does its own attention, and the results are put side by side
# again. In memory that is a question of axes: $(T, C) \to (T, H, D) \to (H, T, D)$. First cut the
# last axis, **then** exchange; a plain `reshape(H, T, D)` would mix positions.
#
# **Exercise 5.3.** Split. Merging is the same two steps in reverse, and as nothing but places
# changes, each is the other's backward too.

# %% exercise="5.3"
def split_heads(x, heads):
    """x (T, C) -> (H, T, D): head h has the features from h·D on."""
    # solution
    T, C = x.shape
    return x.reshape(T, heads, C // heads).transpose(1, 0, 2)

# %%
check(split_heads)

# %%
def merge_heads(x):
    """(H, T, D) -> (T, C)."""
    H, T, D = x.shape
    return x.transpose(1, 0, 2).reshape(T, H * D)


x = rng.normal(size=(4, 6))
print("there and back:", np.array_equal(merge_heads(split_heads(x, 3)), x))

# %% [markdown]
# Here is what four heads of a block look at, in the model that ships with numgpt, which was trained
# on Shakespeare. Every row is a position that looks to its left. Much of the weight falls on
# punctuation and on the first id, where a head can rest that has nothing to say:

# %%
model, tokenizer = numgpt.load("shakespeare")
ids = tokenizer.encode("O Romeo, Romeo! wherefore art thou Romeo?")
names = [tokenizer.decode([id]) for id in ids]
_, activations = model.run_with_cache(ids)
pattern = activations["blocks.2.attn.hook_pattern"][0]
_, axes = figure(1, 4, width=3.2, height=3.4)
for head, axis in enumerate(axes):
    axis.imshow(pattern[head], cmap="Blues", vmin=0, vmax=1)
    axis.set_title(f"head {head}")
    axis.set_xticks(range(len(ids)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(ids)), names if head == 0 else [], fontsize=7)

# %% [markdown]
# ## Tiles
#
# $S$ and $P$ are $T \times T$. For a text of 100,000 positions that is ten billion numbers, 40 GB
# for each head of each layer. The way out (Dao et al. 2022, arXiv:2205.14135): never have $P$
# whole. Take some keys at a time, and keep for each query three things about the keys seen so far:
#
# - $M$, the largest score,
# - $Z = \sum_j e^{s_j - M}$,
# - $y = \frac1Z\sum_j e^{s_j - M}\, v_j$, the answer as if there were no further keys.
#
# When another tile of keys comes with its own $M'$, $Z'$, $y'$, the two are joined. The new maximum
# is the larger one, and each side's sum has to be brought to it by $e^{M - M_\text{new}}$. After
# that, the answer is the mean of both, weighted by their sums:
#
# $$ \begin{gathered}
#    M_\text{new} = \max(M, M') \qquad a = Ze^{M - M_\text{new}} \\[4pt]
#    b = Z'e^{M' - M_\text{new}} \qquad Z_\text{new} = a + b \\[4pt]
#    y_\text{new} = \frac{a\,y + b\,y'}{a + b}
#    \end{gathered} $$
#
# **Exercise 5.4.** Join two tiles. From some queries all keys of a tile may be hidden: that row has
# $M = -\infty$, $Z = 0$ and $y = 0$, and no weight. Where both tiles are hidden so is the result:
# again $-\infty$, 0 and 0. Nobody wants NaN in a model because of a line of padding.

# %% exercise="5.4"
def join_tiles(y1, m1, z1, y2, m2, z2):
    """y1, y2 (T, D); m1, z1, m2, z2 (T, 1) -> y (T, D), m (T, 1), z (T, 1)."""
    # solution
    m = np.maximum(m1, m2)
    safe = np.where(np.isinf(m), 0, m)
    a, b = z1 * np.exp(m1 - safe), z2 * np.exp(m2 - safe)
    z = a + b
    return (a * y1 + b * y2) / np.where(z > 0, z, 1), m, z

# %%
check(join_tiles)

# %% [markdown]
# Now attention over any number of keys with a few of them in memory at a time. It gives what your
# first version gives:

# %%
def tile(q, k, v, first):
    """All queries with the keys from `first` on -> y, M, Z."""
    s = q @ k.T / np.sqrt(q.shape[1])
    later = first + np.arange(len(k)) > np.arange(len(q))[:, None]
    s = np.where(later, -np.inf, s)
    m = s.max(axis=1, keepdims=True)
    e = np.exp(s - np.where(np.isinf(m), 0, m))
    z = e.sum(axis=1, keepdims=True)
    return e @ v / np.where(z > 0, z, 1), m, z


q, k, v = rng.normal(size=(3, 12, 4))
state = tile(q, k[:5], v[:5], 0)
for first in (5, 10):
    state = join_tiles(*state, *tile(q, k[first : first + 5], v[first : first + 5], first))
print("largest difference:", float(abs(state[0] - attention(q, k, v)[0]).max()))

# %% [markdown]
# Backwards, $P$ is not kept either: it is computed again, tile by tile, from $q$, $k$, $M$ and $Z$.
# And the row sums of $\mathrm{d}P \odot P$ need no row of $\mathrm{d}P$:
# $\sum_j \mathrm{d}p_j\, p_j = \sum_j (\mathrm{d}y \cdot v_j)\, p_j = \mathrm{d}y \cdot y$. That is
# all there is to fast attention, and `tile_forward` and `tile_backward` in numgpt's
# `layers/attention.py` are those lines.

# %%
q, k, v, dy = rng.normal(size=(4, 12, 4))
y, p = attention(q, k, v)
theirs, cache = numgpt.layers.attention_forward(*(a[None, None] for a in (q, k, v)))
their_gradients = numgpt.layers.attention_backward(dy[None, None], cache)
ours = attention_backward(dy, q, k, v, p)
print("forward ", float(abs(theirs[0, 0] - y).max()))
apart = [float(abs(a[0, 0] - b).max()) for a, b in zip(their_gradients, ours, strict=True)]
print("backward", apart)

# %% [markdown]
# ## What to take along
#
# - Attention is a weighted mean of values, and the weights are a softmax of dot products.
# - Its backward is two products you know, with a softmax you know in between.
# - A square matrix hides that its transpose was forgotten; a gradient check sees it.
# - The maximum and the sum of a row are enough to join what was computed apart.
#
# **Where this is in numgpt:** `layers/attention.py`; the cutting is in `layers/attention_tiles.py`.

# %% [markdown]
# # 12 Going fast
#
# NumPy is said to be slow. Yet this project trains and runs GPT-2 on a CPU faster than eager
# PyTorch does, with no compiled code of its own. This lesson shows why that is possible, and what
# it takes: counting what has to be done, and then not doing anything else.

# %%
import time

import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)


def seconds(function, repeats=5):
    """The fastest of some runs: whatever made the others slower was not the function."""
    function()  # once to warm up
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)

# %% [markdown]
# ## Count first
#
# How many multiplications does one forward pass over $T$ positions take? A product of $(N, I)$ and
# $(I, O)$ takes $N \cdot I \cdot O$. Go through lesson 6's page with that:
#
# - a block's four linear layers: to $3C$, from $C$ to $C$, to $4C$, and back;
# - attention's two products, $QK^\top$ and $PV$, over all heads ($H \cdot D = C$);
# - at the end the unembedding, $C$ to $V$, once.
#
# Norms, GELU, softmax, and sums are of the order of $T \cdot C$: no product, so leave them out.
#
# **Exercise 12.1.** Count attention as a whole square; tiles save nearly half of it.

# %% exercise="12.1"
def multiplications(T, C, n_layer, V):
    """Of one forward pass over T positions."""
    # solution
    linear = T * C * (3 * C + C + 4 * C + 4 * C)
    attention = 2 * T * T * C
    return n_layer * (linear + attention) + T * C * V

# %%
check(multiplications)

# %%
T, C, n_layer, V = 1024, 768, 12, 50257
parts = {
    "linear layers": n_layer * 12 * T * C * C,
    "attention": n_layer * 2 * T * T * C,
    "unembedding": T * C * V,
}
for name, count in parts.items():
    share = count / multiplications(T, C, n_layer, V)
    print(f"{name:14} {count / 1e9:6.1f} thousand million, {share:.0%}")

# %% [markdown]
# Nearly all of it is matrix products, and these NumPy hands to a BLAS library (OpenBLAS), written
# in assembly for your very processor. PyTorch does the same. So in 95 % of the work there is no
# Python at all: Python says *which* product, a few hundred times a pass, at some microseconds each.
#
# How fast is your machine at that?

# %%
sizes, rates = (32, 64, 128, 256, 512, 1024), []
for size in sizes:
    a, b = rng.normal(size=(2, size, size)).astype(np.float32)
    rates.append(size**3 / seconds(lambda a=a, b=b: a @ b) / 1e9)
_, axis = figure()
axis.plot(sizes, rates, marker="o")
axis.set_xlabel("size of a square matrix")
axis.set_ylabel("thousand million mult. a second")
axis.set_ylim(0)
best = max(rates) * 1e9
print(
    f"At best {best / 1e9:.0f} thousand million multiplications a second: GPT-2's forward pass of "
    f"1024 positions can take no less than {multiplications(T, C, n_layer, V) / best:.1f} s here."
)

# %% [markdown]
# Small matrices are slow: there is too little work for the time it takes to begin. Hence the first
# rule: **few large products**. numgpt makes queries, keys and values in one product; rows of all
# texts stand one below the other.
#
# ## Memory is slow, fresh memory slower
#
# A processor can multiply faster than it can fetch numbers. Adding two large arrays moves three
# numbers through memory for a single addition. And a *new* array costs more still, as the operating
# system has to find and clear pages for it. Compare the same arithmetic, done three ways:

# %%
x = rng.normal(size=(2048, 3072)).astype(np.float32)
out = np.empty_like(x)


def formula():  # each step makes a new array of 25 MB
    return 0.5 * x * (1 + np.tanh(0.8 * (x + 0.044715 * x**3)))


def in_blocks():  # the same lines on rows that fit the cache
    for first in range(0, len(x), 32):
        rows = x[first : first + 32]
        out[first : first + 32] = (
            0.5 * rows * (1 + np.tanh(0.8 * (rows + 0.044715 * rows * rows * rows)))
        )


times = {
    "formula": seconds(formula),
    "in blocks of rows": seconds(in_blocks),
    "numgpt": seconds(lambda: numgpt.layers.gelu_tanh_forward(x)),
}
for name, taken in times.items():
    print(f"{name:18} {1e3 * taken:6.1f} ms")

# %% [markdown]
# The second rule: **work on rows that fit the cache**. The formula stays as it was; only how many
# rows it sees at once changes. (`x**3` is another trap: a general power takes many times as long as
# two products.) numgpt's `over_row_blocks` cuts, and shares the blocks among the cores.
#
# ## The largest array, never whole
#
# For GPT-2 the logits of 1024 positions are $1024 \times 50257$ numbers: 206 MB. Their gradient,
# the same again. But a row's loss and gradient need that row's logits only. So take some rows at a
# time through product, softmax, and both of backward's products, and reuse the memory.
#
# **Exercise 12.2.** The loss of lesson 3 joined with the layer $z = xW^\top$ before it. `dweight`
# gets something from every chunk.

# %% exercise="12.2"
def chunked_cross_entropy(x, weight, targets, rows):
    """x (N, C), weight (V, C), targets (N,); rows, at a time -> mean loss, dx (N, C), dweight."""
    # solution
    N = len(x)
    loss, dx, dweight = 0.0, np.zeros_like(x), np.zeros_like(weight)
    for first in range(0, N, rows):
        part = slice(first, first + rows)
        z = x[part] @ weight.T
        z = z - z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        places = np.arange(len(z)), targets[part]
        loss -= log_p[places].sum() / N
        dz = np.exp(log_p)
        dz[places] -= 1
        dz = dz / N
        dx[part] = dz @ weight
        dweight += dz.T @ x[part]
    return loss, dx, dweight

# %%
check(chunked_cross_entropy)

# %%
import tracemalloc

x, weight = rng.normal(size=(512, 64)), rng.normal(size=(8000, 64)) / 8
targets = rng.integers(8000, size=512)
for rows in (512, 128, 32):
    tracemalloc.start()
    began = time.perf_counter()
    chunked_cross_entropy(x, weight, targets, rows)
    taken = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{rows:4} rows at a time: {1e3 * taken:6.1f} ms, at most {peak / 1e6:6.1f} MB")

# %% [markdown]
# ## Attention in tiles
#
# Lesson 5 joined tiles because the whole matrix of scores would not fit. Tiles are also *faster*: a
# tile stays in the cache between product, softmax and product, and the half above the diagonal is
# never computed.

# %%
lengths, naive, tiled = (128, 256, 512, 1024), [], []
for T in lengths:
    q, k, v = rng.normal(size=(3, 1, 8, T, 64)).astype(np.float32)
    mask = np.tri(T, dtype=bool)

    def whole(q=q, k=k, v=v, mask=mask):
        s = np.where(mask, q @ k.swapaxes(2, 3) / 8, -np.inf)
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True) @ v

    naive.append(seconds(whole))
    tiled.append(seconds(lambda q=q, k=k, v=v: numgpt.layers.attention_forward(q, k, v)))
_, axis = figure()
axis.loglog(lengths, naive, marker="o", label="whole matrix")
axis.loglog(lengths, tiled, marker="o", label="numgpt's tiles")
axis.set_xticks(lengths, lengths)
axis.minorticks_off()
axis.set_xlabel("positions")
axis.set_ylabel("seconds")
axis.legend();

# %% [markdown]
# ## More than one core
#
# The BLAS shares a product among the cores by itself. What lies between the products it does not
# see: there NumPy uses one core, unless the rows are handed to threads in parts. Python's threads
# may run side by side here, as NumPy lets go of the interpreter's lock while it computes. So the
# blocks of rows above, and the heads of attention, go to as many threads as there are cores.

# %%
every = numgpt.runtime.num_threads()
a, b = rng.normal(size=(2, 1024, 1024)).astype(np.float32)
wide = rng.normal(size=(2048, 3072)).astype(np.float32)
q, k, v = rng.normal(size=(3, 1, 8, 512, 64)).astype(np.float32)
for threads in sorted({1, every}):
    numgpt.set_num_threads(threads)
    product = 1e3 * seconds(lambda: numgpt.runtime.matmul(a, b))
    rows = 1e3 * seconds(lambda: numgpt.layers.gelu_tanh_forward(wide))
    heads = 1e3 * seconds(lambda: numgpt.layers.attention_forward(q, k, v))
    print(f"threads {threads}: product {product:.1f} ms, rows {rows:.1f} ms, heads {heads:.1f} ms")
numgpt.set_num_threads(every)

# %% [markdown]
# Threads have a price: starting one takes as long as some million multiplications, and a BLAS
# thread that waits for its next product keeps its core busy for a while, which another thread may
# need. Small work is faster on one. (On a machine with a single core, there is one line above.)

# %% [markdown]
# ## Fewer bits
#
# Writing, one id at a time, is another world. Each weight is fetched from memory to be multiplied
# *once*. There the processor waits for memory nearly all the time, and the way to be faster is to
# have less to fetch: weights in 16 or 8 bits in place of 32. In int8, each row of a matrix gets a
# scale, so that its largest number becomes 127:
#
# $$ \begin{gathered}
#    s_o = \max_i |W_{oi}| / 127 \\[4pt]
#    Q_{oi} = \operatorname{round}(W_{oi}/s_o) \qquad W_{oi} \approx s_o\,Q_{oi}
#    \end{gathered} $$
#
# **Exercise 12.3.** A row of zeros must not become NaN.

# %% exercise="12.3"
def to_int8(weight):
    """weight (O, I) -> q (O, I), int8; scale (O, 1)."""
    # solution
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    q = np.round(weight / np.where(scale > 0, scale, 1)).astype(np.int8)
    return q, scale

# %%
check(to_int8)

# %%
model, tokenizer = numgpt.load("shakespeare")
ids = np.array(tokenizer.encode("KING HENRY:\nOnce more unto the breach, dear friends, once more;"))
print(f"loss as it is                {model.loss(ids[:-1], ids[1:]):.4f}")
for name, weight in model.parameters.items():
    if weight.ndim == 2 and ".weight" in name:
        q, scale = to_int8(np.ascontiguousarray(weight.T))
        weight[...] = (scale * q).T
print(f"with matrices from 8 bits    {model.loss(ids[:-1], ids[1:]):.4f}")

# %% [markdown]
# A quarter of the memory, and a loss that hardly changes. `numgpt.load(…, dtype="int8")` keeps the
# eight bits and multiplies them as they are, where the library oneDNN is installed.
#
# ## And Python?
#
# What is left for Python is to say what is done next. How much is that? A pass of the small shipped
# model over one position, where there is next to nothing to compute, is almost nothing else:

# %%
model, _ = numgpt.load("shakespeare")
cost = seconds(lambda: model(ids[:1]), 20)
products = 4 * model.config.n_layer + 1
each = 1e6 * cost / products
print(f"{1e3 * cost:.2f} ms for {products} products and all between: {each:.0f} µs each")
long = rng.integers(1000, size=(4, 256))
whole = seconds(lambda: model(long), 3)
print(f"with 4 x 256 positions {1e3 * whole:.0f} ms: Python's share is at most {cost / whole:.0%}")

# %% [markdown]
# Python is slow for a single number, and does not matter for a million of them. That is the whole
# secret. The larger the model, the less of its time is Python's.
#
# ## What to take along
#
# - Count multiplications; they give the time that cannot be beaten.
# - Few large products; the rest on rows that fit the cache; no fresh memory in the middle.
# - What is largest is never whole: logits in chunks, scores in tiles.
# - One id at a time, memory is the limit: fewer bits.
# - Measure, alternate, take the fastest or the median, and believe nothing else.
#
# **Where this is in numgpt:** `runtime/` has all that is there for speed, and nothing else has;
# `benchmarks/` measures it against the others.
#
# That was the course. You know every line of a GPT, forwards and backwards. Now read the code, or
# change it.

# %% [markdown]
# # 8 Sampling and the KV cache
#
# A trained model is a function from a text to probabilities for what comes next. To make it write
# you call it, choose an id, put that at the end of the text, and call it again. Two questions
# remain. How do you choose? And must it really read the whole text again for each word?

# %%
import time

import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

model, tokenizer = numgpt.load("shakespeare")

# %% [markdown]
# ## The loop

# %%
def write(model, ids, count, choose):
    """ids with `count` more, each as choose(logits (V,)) says."""
    ids = list(ids)
    for _ in range(count):
        logits = model(ids[-model.context_length :])[0, -1]
        ids.append(int(choose(logits.astype(np.float64))))
    return ids


start = tokenizer.encode("KING RICHARD:\n")
print(tokenizer.decode(write(model, start, 80, np.argmax)))

# %% [markdown]
# That took the likeliest id every time. It is called *greedy*, and you see what comes of it: it is
# the same text each time, and it tends to go round in circles. A good text is not one whose every
# word is the likeliest. So we draw.
#
# ## Drawing
#
# Put the probabilities one after another on a line from 0 to 1, each as long as it is large. Throw
# a dart at $u$, uniform in $[0, 1)$. The id on whose piece it lands is the draw: the first one for
# which the sum of all probabilities up to it is **greater** than $u$.
#
# **Exercise 8.1.** `np.cumsum` and `np.searchsorted` do it in a line; mind on which side `u` falls
# when it hits a border, as an id with the probability 0 must never come.

# %% exercise="8.1"
def draw(p, u):
    """p (V,), probabilities; u in [0, 1) -> an id."""
    # solution
    return int(np.searchsorted(np.cumsum(p), u, side="right"))

# %%
check(draw)

# %% [markdown]
# ## Temperature
#
# Drawing from the model's own probabilities gives texts as the model believes them to be, errors
# included: among fifty thousand ids there are many bad ones, each unlikely, all together not.
# Lesson 3 had the remedy: divide the logits by a temperature $\tau$ before the softmax. Below 1 the
# likely ones get likelier, above 1 all come closer together; $\tau \to 0$ is greedy.
#
# **Exercise 8.2.** Logits may be large here, too.

# %% exercise="8.2"
def with_temperature(z, temperature):
    """z (V,), logits -> p (V,)."""
    # solution
    z = z / temperature
    e = np.exp(z - z.max())
    return e / e.sum()

# %%
check(with_temperature)

# %% [markdown]
# ## Cutting off the tail
#
# A lower temperature makes good words likelier *and* the text duller. Another way is to leave the
# probabilities of good words as they are, and to forbid the bad ones. How many are good depends on
# the place: after "KING RICHARD THE" few words make sense, after "The" thousands. *Nucleus
# sampling*, or top-p (Holtzman et al. 2019, arXiv:1904.09751), keeps the fewest ids that together
# have the probability $p$, and makes their sum 1 again.
#
# With probabilities 0.5, 0.3, 0.15, 0.05 and $p = 0.7$: the first alone has 0.5, which is not
# enough; the first two have 0.8. So two are kept, as 0.625 and 0.375.
#
# **Exercise 8.3.** The likeliest one is always kept.

# %% exercise="8.3"
def top_p(p, share):
    """p (V,) -> p (V,), 0 for what is cut off, with the sum 1."""
    # solution
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]  # the probability of all that are likelier
    kept = np.zeros_like(p)
    chosen = order[before < share]
    kept[chosen] = p[chosen]
    return kept / kept.sum()

# %%
check(top_p)

# %%
rng = np.random.default_rng(4)
for temperature, share in ((1.5, 1.0), (1.0, 1.0), (0.8, 0.9)):

    def choose(z, temperature=temperature, share=share):
        return draw(top_p(with_temperature(z, temperature), share), rng.random())

    print(f"--- temperature {temperature}, top-p {share}")
    print(tokenizer.decode(write(model, start, 60, choose)))

# %% [markdown]
# ## Where the time goes
#
# For each new id the model reads the whole text again. So a text of $T$ ids costs
# $1 + 2 + \dots + T$ positions, which grows with $T^2$. Yet nearly all of it is work that was done
# before: a position sees only what comes before it, so **nothing that comes later changes anything
# about it**. What does a new position need of the old ones? Only what attention reads of them:
# their keys and their values. Keep these. That is the KV cache.
#
# **Exercise 8.4.** One head, one new position. Note what became of the mask.

# %% exercise="8.4"
def attend_one(q, k, v, keys, values):
    """q, k, v (D,) of the new position; keys, values (S, D) of those before it
    -> y (D,), keys (S + 1, D), values (S + 1, D)."""
    # solution
    keys, values = np.vstack([keys, k]), np.vstack([values, v])
    s = keys @ q / np.sqrt(len(q))
    p = np.exp(s - s.max())
    return p @ values / p.sum(), keys, values

# %%
check(attend_one)

# %% [markdown]
# Does it give what reading everything gives? Row by row, the same:

# %%
q, k, v = rng.normal(size=(3, 6, 4))
s = np.where(np.tri(6, dtype=bool), q @ k.T / 2, -np.inf)
whole = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True) @ v
keys, values, rows = np.empty((0, 4)), np.empty((0, 4)), []
for t in range(6):
    y, keys, values = attend_one(q[t], k[t], v[t], keys, values)
    rows.append(y)
print("largest difference:", float(abs(whole - np.array(rows)).max()))

# %% [markdown]
# In the model every layer and every head keeps its own. numgpt's `stream` and `generate` do so;
# `write` above does not. The difference grows with the length:

# %%
lengths, slow, fast = (25, 50, 100, 150), [], []
for length in lengths:
    began = time.perf_counter()
    ours = write(model, start, length, np.argmax)
    slow.append(time.perf_counter() - began)
    began = time.perf_counter()
    options = {"do_sample": False, "generation_config": {}, "eos_token_id": []}
    theirs = model.generate(start, max_new_tokens=length, **options)[0]
    fast.append(time.perf_counter() - began)
    assert ours == theirs.tolist()
_, axis = figure()
axis.plot(lengths, slow, marker="o", label="reads all again")
axis.plot(lengths, fast, marker="o", label="KV cache")
axis.set_xlabel("ids written")
axis.set_ylabel("seconds")
axis.legend();

# %% [markdown]
# What it costs is memory: two vectors of $C$ numbers a layer for each position. For GPT-2 (12
# layers, 768 wide, 4 bytes a number) that is 74 kB a position, 75 MB for a text of 1024. Lesson 9
# shows how Llama makes it smaller.
#
# ## How sure was it?
#
# The same loop read backwards: instead of drawing, look how likely each word of a given text was.
# The higher the bar, the greater the surprise.

# %%
ids = tokenizer.encode("ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east")
logp = model.log_probs(ids[:-1], ids[1:])[0]
_, axis = figure(width=9, height=2.4)
axis.bar(range(len(logp)), -logp)
axis.set_xticks(
    range(len(logp)), [repr(tokenizer.decode([id]))[1:-1] for id in ids[1:]], rotation=90
)
axis.set_ylabel("surprise, nats");

# %% [markdown]
# ## What to take along
#
# - Writing is a loop: logits, a rule, a draw, once more.
# - Temperature bends the probabilities, top-p cuts their tail.
# - What comes later changes nothing before it; so keys and values can be kept.
#
# **Where this is in numgpt:** `generation/batcher.py` is this loop for many texts at once,
# `generation/processors.py` the rules, `models/kv_cache.py` the cache.

# %% [markdown]
# # 11 Looking inside
#
# A trained model is a page of code that you understand and millions of numbers that nobody chose.
# What have they become? This lesson has four instruments: a lens that reads the stream between the
# blocks, a sum that says which part of the model wanted a word, a score that finds a machine for
# copying, and a lens for gradients, which shows what a step of training writes into a matrix.

# %%
import numpy as np

import numgpt
from numgpt import insight
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)
model, tokenizer = numgpt.load("shakespeare")

# %% [markdown]
# ## Hooks
#
# numgpt's models hand each activation to you under a name, the names of TransformerLens, so what
# you learn here holds there too. `run_with_cache` gives them all:

# %%
text = "ROMEO:\nGood morrow, father. What is the"
ids = tokenizer.encode(text)
logits, activations = model.run_with_cache(ids)
for name, value in activations.items():
    if name.startswith("blocks.0.") or "blocks" not in name:
        print(f"{name:32} {value.shape}")

# %% [markdown]
# ## The logit lens
#
# The stream is the same kind of thing at every depth: each block adds to it, and at the end it is
# read by the last norm and the unembedding. So read it *earlier*, as if the blocks that follow were
# missing (nostalgebraist 2020). What comes out are logits: the model's guess so far.
#
# **Exercise 11.1.** Norm, then unembedding.

# %% exercise="11.1"
def logit_lens(stream, weight, bias, unembedding, eps=1e-5):
    """stream (N, C), the last norm's weight and bias (C,), unembedding (V, C) -> logits (N, V)."""
    # solution
    centred = stream - stream.mean(axis=1, keepdims=True)
    x_hat = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    return (weight * x_hat + bias) @ unembedding.T

# %%
check(logit_lens)

# %%
p = model.parameters
streams = [activations[f"blocks.{i}.hook_resid_post"][0] for i in range(model.config.n_layer)]
guesses = [
    logit_lens(x, p["ln_f.weight"], p["ln_f.bias"], p["wte"]).argmax(axis=1) for x in streams
]
_, axis = figure(width=10, height=2.8)
axis.set_xlim(-0.5, len(ids) - 0.5)
axis.set_ylim(-0.5, len(streams) - 0.5)
for depth, row in enumerate(guesses):
    for place, id in enumerate(row):
        same = id == guesses[-1][place]
        shown = repr(tokenizer.decode([int(id)]))[1:-1]
        axis.text(place, depth, shown, ha="center", color="#d9730d" if same else "grey", fontsize=8)
axis.set_xticks(range(len(ids)), [repr(tokenizer.decode([id]))[1:-1] for id in ids], rotation=90)
axis.set_ylabel("after block")
axis.set_title("The likeliest next word so far (orange: as at the end)");

# %% [markdown]
# The lowest rows are of little use; by the middle many places have settled on what they will say.
# The prediction is not made at the end, it is refined on the way.
#
# ## Who wanted that word?
#
# The stream at the end is a **sum**: embedding, position, and what each head and each MLP has
# added, $x = \sum_c x_c$. If the norm were linear, the logit would be a sum as well, with a part
# for each of them. It is linear, *once the row's standard deviation is taken as given*:
#
# $$ \text{logit}_t = \sum_c \bigl(w \odot (x_c - \operatorname{mean}(x_c))\, r\bigr)\cdot u_t
#    \;+\; b \cdot u_t $$
#
# with $r$ = `rstd` of the **whole** stream and $u_t$ the unembedding's row for the word. This is
# direct logit attribution (Elhage et al. 2021).
#
# **Exercise 11.2.** What each part adds to one word's logit; the bias is nobody's.

# %% exercise="11.2"
def attribution(parts, weight, direction, eps=1e-5):
    """parts (M, C), whose sum is the stream; weight (C,); direction (C,), an unembedding's row
    -> (M,), what each part adds to the logit."""
    # solution
    stream = parts.sum(axis=0)
    rstd = 1 / np.sqrt(stream.var() + eps)
    centred = parts - parts.mean(axis=1, keepdims=True)
    return (weight * centred * rstd) @ direction

# %%
check(attribution)

# %%
last = {name: value[0, -1] for name, value in activations.items() if value.ndim == 3}
layers = range(model.config.n_layer)
parts = {"embedding": last["hook_embed"], "position": last["hook_pos_embed"]}
parts |= {f"attention {i}": last[f"blocks.{i}.hook_attn_out"] for i in layers}
parts |= {f"mlp {i}": last[f"blocks.{i}.hook_mlp_out"] for i in layers}
best = int(logits[0, -1].argmax())
each = attribution(np.array([*parts.values()]), p["ln_f.weight"], p["wte"][best])
total = each.sum() + p["ln_f.bias"] @ p["wte"][best]
print(f"{text!r} goes on with {tokenizer.decode([best])!r}")
print(f"logit {logits[0, -1, best]:.4f}, the sum of all parts {total:.4f}")
_, axis = figure(width=5, height=3.4)
axis.barh([*parts][::-1], each[::-1])
axis.set_xlabel("part of the logit");

# %% [markdown]
# ## A machine that copies
#
# How does a model learn to go on with "… Juliet … Jul" → "iet"? Train two layers on random
# sequences that repeat, where nothing but copying helps, and watch. To predict, a position has to
# find where its id stood before, and to look at what came **after** it. Such a head is called an
# *induction head* (Olsson et al. 2022, arXiv:2209.11895).
#
# **Exercise 11.3.** How much does a head attend to the places right after earlier occurrences of
# the same id? For each query $i$ sum $p_{i,j+1}$ over all $j < i$ with $\text{id}_j = \text{id}_i$,
# and take the mean over those $i$ that have such a $j$.

# %% exercise="11.3"
def induction_score(pattern, ids):
    """pattern (T, T), of one head; ids (T,) -> a number from 0 to 1."""
    # solution
    earlier = (ids[:, None] == ids) & np.tri(len(ids), k=-1, dtype=bool)  # (i, j)
    after = np.zeros_like(earlier)
    after[:, 1:] = earlier[:, :-1]
    rows = earlier.any(axis=1)
    return (pattern * after)[rows].sum(axis=1).mean()

# %%
check(induction_score)

# %%
VOCABULARY, CONTEXT = 32, 32


def repeating(count):
    """Random sequences of 4 to 16 ids, repeated; what cannot be known is no target."""
    ids, targets = np.empty((count, CONTEXT + 1), np.int64), np.full((count, CONTEXT), -100)
    for row, wanted in zip(ids, targets, strict=True):
        period = int(rng.integers(4, 17))
        row[:] = np.resize(rng.integers(VOCABULARY, size=period), CONTEXT + 1)
        wanted[period:] = row[period + 1 :]
    return ids[:, :-1], targets


sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
copier = numgpt.GPT(numgpt.GPTConfig(**sizes), seed=0)
optimizer, curve = numgpt.AdamW(copier, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01), []
twice = np.tile(rng.permutation(VOCABULARY)[:16], 2)
for step in range(750):
    optimizer.lr = 4e-3 * min(1, (step + 1) / 50)
    loss, _ = copier.loss_and_grads(*repeating(32))
    optimizer.step(grad_clip=1.0)
    if step % 25 == 0:
        patterns = [pattern[0] for pattern in copier.attentions(twice)]
        previous = max(np.diag(head, -1).mean() for head in patterns[0])
        curve.append((step, loss, previous, max(induction_score(h, twice) for h in patterns[1])))
steps, losses, previous, induction = np.array(curve).T
_, (left, right) = figure(1, 2)
left.plot(steps, losses)
left.set_xlabel("step")
left.set_ylabel("loss")
right.plot(steps, previous, label="layer 0: the token before")
right.plot(steps, induction, label="layer 1: induction")
right.set_xlabel("step")
right.set_ylabel("attention of the best head")
right.legend();

# %% [markdown]
# The loss falls when the two come together: a head in the first layer writes into each position
# which id came before it, and a head in the second finds the position whose note says "after an id
# like mine". Neither is of use alone. In the second half of a text that stands twice, the second
# layer's attention is a line:

# %%
_, axes = figure(1, 4, width=2.6, height=2.6)
for head, axis in enumerate(axes):
    axis.imshow(copier.attentions(twice)[1][0, head], cmap="Blues")
    axis.set_title(f"layer 1, head {head}")

# %% [markdown]
# Is it the cause, or does it only look like one? Take the second layer's heads out, and see:

# %%
ids_again, targets_again = repeating(64)
counted = targets_again != -100


def accuracy(hooks):
    guessed = copier.run_with_hooks(ids_again, hooks).argmax(axis=-1)
    return (guessed == targets_again)[counted].mean()


print(f"right as it is {accuracy({}):.0%}")
for layer in range(2):
    hooks = insight.ablation_hooks(copier, heads=[(layer, h) for h in range(4)], means=ids_again)
    print(f"without what layer {layer}'s heads have to say {accuracy(hooks):.0%}")

# %% [markdown]
# ## What a gradient writes
#
# Lesson 2 had $\mathrm{d}W = X^\top \mathrm{d}Y$, which is a sum over positions of outer products:
#
# $$ \mathrm{d}W = \sum_n x_n\,\delta_n^\top, \qquad \delta_n = \frac{\partial L}{\partial y_n} $$
#
# **Exercise 11.4.** The terms by themselves.

# %% exercise="11.4"
def terms_of_gradient(x, delta):
    """x (N, I), delta (N, O) -> (N, I, O), whose sum over N is the weight's gradient."""
    # solution
    return x[:, :, None] * delta[:, None, :]

# %%
check(terms_of_gradient)

# %% [markdown]
# Now read it as a *memory*. A step subtracts a little of $\mathrm{d}W$. Wherever an input like
# $x_n$ comes again, the matrix will answer with $-\delta_n$ more than before: $x_n$ is the key, and
# $-\delta_n$ what is written there. For a matrix that writes into the stream, such as an MLP's
# second one, $\delta$ is a vector of the stream, so the unembedding can read it (Katz et al. 2024,
# arXiv:2402.12865). Which words would one step on this text make likelier, at each position?

# %%
targets = np.array([*ids[1:], tokenizer.encode(" news")[0]])
seen, deltas, layer = {}, {}, 4


def keep(store, name):
    return lambda value: store.__setitem__(name, value.copy())


_, gradients = model.loss_and_grads(
    ids,
    targets,
    hooks={f"blocks.{layer}.mlp.hook_post": keep(seen, "x")},
    backward_hooks={f"blocks.{layer}.hook_mlp_out": keep(deltas, "delta")},
)
x, delta = seen["x"].reshape(len(ids), -1), deltas["delta"].reshape(len(ids), -1)
written = terms_of_gradient(x, delta).sum(axis=0)
theirs = gradients[f"h.{layer}.mlp.c_proj.weight"]
apart = float(abs(written - theirs).max() / abs(theirs).max())
print(f"the sum of all terms against the gradient itself: {apart:.1e}")
assert apart < 1e-4
promoted = (-delta / np.linalg.norm(delta, axis=1, keepdims=True)) @ p["wte"].T
for place, id in enumerate(ids):
    words = [tokenizer.decode([int(w)]) for w in np.argsort(-promoted[place])[:4]]
    rank = int((promoted[place] > promoted[place, targets[place]]).sum())
    now, wanted = (repr(tokenizer.decode([int(i)])) for i in (id, targets[place]))
    print(f"{now:>10}  wants {wanted:10} rank {rank:4} of 1024; writes {words}")

# %% [markdown]
# What is written at a position is, to a good part, the word that should have come. Training is a
# great number of such notes, written on top of each other.
#
# ## What to take along
#
# - The stream can be read anywhere: lens.
# - The logit is a sum over the parts of the model, with the norm's scale held fast: attribution.
# - Heads of two layers make a machine together; taking it out shows whether it was the cause.
# - A gradient is a sum of key and value pairs.
#
# **Where this is in numgpt:** `insight/lens.py`, `attribution.py`, `heads.py`, `patching.py`. And
# `numgpt explain "…"` makes a page on which every number of a pass can be looked at, forwards and
# backwards.

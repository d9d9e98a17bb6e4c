# %% [markdown]
# # 7 Training a model that writes
#
# Gradients say which way is down. How far to go is another question, and a good answer makes the
# difference between a model that learns in minutes and one that never does. This lesson derives
# Adam, the schedule that goes with it, and dropout. Then it trains a small GPT until it writes, and
# reads from two curves what is wrong with it.

# %%
import time

import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)

# %% [markdown]
# ## Why not simply downhill
#
# `w -= lr * g` has trouble as soon as the loss is steep in one direction and flat in another, which
# it always is. A step that is small enough for the steep one takes forever along the flat one. Here
# are both methods in such a valley, for 60 steps:

# %%
def valley(w):
    """The loss at w (2,), and its gradient: a hundred times steeper in the second direction."""
    return 0.5 * (w[0] ** 2 + 100 * w[1] ** 2), np.array([w[0], 100 * w[1]])


def walk(steps, move):
    """The points that a method visits, from (-8, 0.8) on."""
    points = [np.array([-8.0, 0.8])]
    for step in range(1, steps + 1):
        points.append(points[-1] - move(valley(points[-1])[1], step))
    return np.array(points)


def plain(g, step):
    return 0.018 * g


m, v = np.zeros(2), np.zeros(2)


def adam(g, step):
    global m, v
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    return 0.3 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)


x, y = np.meshgrid(np.linspace(-9, 2, 80), np.linspace(-1, 1, 60))
_, axes = figure(1, 2, height=2.4)
for axis, move in zip(axes, (plain, adam), strict=True):
    axis.contour(x, y, np.log(0.5 * (x**2 + 100 * y**2) + 1), levels=12, colors="grey", alpha=0.4)
    points = walk(60, move)
    axis.plot(*points.T, marker=".")
    axis.set_title(f"{move.__name__}, loss at the end {valley(points[-1])[0]:.2g}")

# %% [markdown]
# ## Adam
#
# Adam (Kingma & Ba 2014, arXiv:1412.6980) keeps two running means for each parameter: of its
# gradient, and of its gradient's square,
#
# $$ m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad
#    v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2 $$
#
# and moves by $m/\sqrt{v}$. Where the gradient keeps its sign, that is close to 1, however small
# the gradient is: flat directions are crossed at full speed. Where it flips back and forth, $m$ is
# near 0: steep ones are damped. The size of a step is about `lr`, whatever the loss is multiplied
# by.
#
# Both begin at 0, so at first they are too small. After $t$ steps the weights of all gradients in
# $m$ sum up to $1 - \beta_1^t$ (a geometric series). Dividing by that mends it:
#
# $$ \hat m = \frac{m}{1 - \beta_1^t} \qquad \hat v = \frac{v}{1 - \beta_2^t} \qquad
#    w \leftarrow w - \text{lr}\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon} $$
#
# In the first step, $\hat m = g$ and $\hat v = g^2$, so every parameter moves by just `lr`.
#
# AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) adds *weight decay*: every step first
# multiplies the weights by $1 - \text{lr}\,\lambda$ (`decay` in the code), so that none grows
# without a reason. It is done to the weights themselves, and **not** added to the gradient: there,
# Adam would divide it by $\sqrt v$ like everything else, and weights with large gradients would
# decay least.
#
# **Exercise 7.1.** One step. `t` counts from 1.

# %% exercise="7.1"
def adamw(w, g, m, v, t, lr=1e-3, beta_1=0.9, beta_2=0.99, eps=1e-8, decay=0.1):
    """w, g, m, v of one shape -> the new w, m, v."""
    # solution
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g**2
    m_hat, v_hat = m / (1 - beta_1**t), v / (1 - beta_2**t)
    w = w - lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, m, v

# %%
check(adamw)

# %% [markdown]
# ## How fast, when
#
# The first steps follow the gradients of very few batches, at full size: begin slowly, and *warm
# up*. At the end, the noise of single batches keeps the weights from settling: become slow. In
# between, a cosine:
#
# $$ \text{lr}(s) = \begin{cases}
#    \text{lr}\,\frac{s + 1}{\text{warm-up}} & s < \text{warm-up} \\[2pt]
#    \text{low} + \frac12(\text{lr} - \text{low})\,(1 + \cos \pi x) & \text{else} \end{cases} $$
#
# with $x$ going from 0 to 1: $x = (s - \text{warm-up}) / (\text{steps} - 1 - \text{warm-up})$.
#
# **Exercise 7.2.** Steps count from 0 here. The first rate is not 0: that would be a step for
# nothing. There may be no warm-up at all, `warmup` 0.

# %% exercise="7.2"
def learning_rate(step, steps, lr, low, warmup):
    """The rate of step 0, 1, …, steps - 1."""
    # solution
    if step < warmup:
        return lr * (step + 1) / warmup
    x = (step - warmup) / (steps - 1 - warmup)
    return low + 0.5 * (lr - low) * (1 + np.cos(np.pi * x))

# %%
check(learning_rate)

# %% [markdown]
# Once in a while a batch is so odd that its gradient is many times larger than all others. One such
# step can undo an hour of training. So the gradient is *clipped*: all parameters together are one
# long vector, and if that is longer than a limit, it is shortened to it. Its direction stays.
#
# **Exercise 7.3.** Clip a list of gradients.

# %% exercise="7.3"
def clip(gradients, limit):
    """gradients, a list of arrays -> a list, whose norm over all of them is at most limit."""
    # solution
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    scale = limit / norm if norm > limit else 1.0
    return [g * scale for g in gradients]

# %%
check(clip)

# %% [markdown]
# ## Dropout
#
# With a small text a model learns it by heart instead of learning how it is made. *Dropout*
# (Srivastava et al. 2014) makes that harder: in training, each number of an activation is replaced
# by 0 with a probability $p$, at random, so that none can be relied upon. What is left is
# multiplied by $1/(1-p)$, so that the sum stays what it was on average; then nothing has to be done
# when the model is used, where nothing is dropped.
#
# Backward: $y = x \odot m$ with a mask $m$ of zeros and $1/(1-p)$, so
# $\mathrm{d}x = \mathrm{d}y \odot m$, with **the same** mask.
#
# **Exercise 7.4.** The code below has two faults. The loss still falls, somewhat, which is why
# nobody saw them for a while. Find both.

# %% exercise="7.4"
def dropout_backward(dy, kept, p):
    """dy (N, C), kept (N, C) of booleans, the mask of forward; p, the fraction dropped -> dx."""
    #: kept = np.random.default_rng(0).random(dy.shape) >= p
    #: return dy * kept
    # solution
    return dy * kept / (1 - p)

# %%
check(dropout_backward)

# %% [markdown]
# ## Training
#
# Now all of it, on characters of Python's own documentation. The model is numgpt's, as it is fast;
# it is the function that you wrote in lesson 6. A batch is some stretches of the text, drawn at
# random. A tenth of the text, every tenth piece of it, is held out and never trained on. The next
# two cells take a minute or so each.

# %%
from pydoc_data.topics import topics

text = "\n".join(topics.values()).encode("ascii", "ignore").decode()
characters = sorted(set(text))
data = np.searchsorted(characters, list(text))
pieces = np.array_split(data, 100)
parts = {
    "training": np.concatenate([piece for n, piece in enumerate(pieces) if n % 10]),
    "held out": np.concatenate(pieces[::10]),
}


def batch(part, size, context, source=None):
    """ids and targets (size, context): each target is the id that comes next."""
    source = rng if source is None else source
    places = source.integers(len(part) - context, size=(size, 1)) + np.arange(context)
    return part[places], part[places + 1]


def mean_loss(model, part, batches=5):
    same = np.random.default_rng(1)  # the same places each time
    return float(np.mean([model.loss(*batch(part, 16, 64, same)) for _ in range(batches)]))


def train(model, part, steps, lr=3e-3, decay=0.1, every=50):
    """Train in place -> the losses, as {"training": …, "held out": …} by step."""
    optimizer = numgpt.AdamW(model, lr=lr, betas=(0.9, 0.99), weight_decay=decay)
    curve = {name: [] for name in ("step", *parts)}
    for step in range(steps):
        optimizer.lr = learning_rate(step, steps, lr, lr / 10, steps // 20 + 1)
        model.loss_and_grads(*batch(part, 16, 64), rng)
        optimizer.step(grad_clip=1.0)
        if step % every == 0 or step == steps - 1:
            curve["step"].append(step)
            curve["training"].append(mean_loss(model, part))
            curve["held out"].append(mean_loss(model, parts["held out"]))
    return curve


def new_model(dropout=0.0):
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 64}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return numgpt.GPT(numgpt.GPTConfig(vocab_size=len(characters), **sizes, **drops), seed=0)


model, began = new_model(), time.perf_counter()
guess = np.log(len(characters))
print(f"{model.num_parameters():,} parameters; a guess at random has the loss {guess:.2f}")
curve = train(model, parts["training"], 800)
print(f"{time.perf_counter() - began:.0f} s")
_, axis = figure()
for name in parts:
    axis.plot(curve["step"], curve[name], label=name)
axis.axhline(2.5, color="grey", linestyle="--", label="a table of pairs (lesson 3)")
axis.set_xlabel("step")
axis.set_ylabel("loss")
axis.legend();

# %%
def write(model, start, length, temperature=0.8):
    ids = [characters.index(c) for c in start]
    options = {"do_sample": True, "temperature": temperature, "seed": 1, "slide": True}
    made = model.generate(ids, max_new_tokens=length, **options)[0]
    return "".join(characters[id] for id in made)


print(write(model, "The value ", 300))

# %% [markdown]
# It has learnt how long words are, where spaces, brackets and quotes go, some short words, and
# something of how Python's documentation sounds, from nothing but guessing the next character.
# Longer training, a larger model and a real tokenizer do the rest.
#
# ## What two curves tell
#
# Here both curves lie close together: the model is too small, or was trained too briefly, to know
# its text by heart. Give it a text of 1,500 characters instead, and look what happens:

# %%
small = parts["training"][:1_500]
curves = {
    "no dropout": train(new_model(), small, 300),
    "dropout 0.2": train(new_model(0.2), small, 300),
}
_, axes = figure(1, 2)
for axis, (title, curve) in zip(axes, curves.items(), strict=True):
    for name in parts:
        axis.plot(curve["step"], curve[name], label=name)
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.set_ylim(0.5, 5)
axes[0].legend();

# %% [markdown]
# The training loss goes down and down, while the loss of what is held out turns up again: from
# there on it learns by heart. This is over-fitting, and only held-out text shows it. The remedies,
# in the order in which they help: more text, a stop at the lowest point (numgpt keeps those weights
# as "best"), a smaller model, dropout.
#
# | you see | it means | do |
# | --- | --- | --- |
# | both fall, side by side | not enough of something | train longer, a larger model |
# | held-out turns up | learning by heart | more text, stop there, dropout |
# | neither falls | learning rate too low, or a fault | a gradient check first |
# | loss jumps or is NaN | learning rate too high | lower it, clip, warm up longer |
#
# One last piece of advice, worth more than all others: before any long training, see that the model
# can learn *one* batch by heart. If its loss does not go to nearly 0 there, something is wrong with
# the code.

# %%
model, one = new_model(), batch(parts["training"], 4, 64)
optimizer, losses = numgpt.AdamW(model, lr=3e-3, weight_decay=0.0), []
for _ in range(200):
    loss, _ = model.loss_and_grads(*one)
    losses.append(loss)
    optimizer.step()
print(f"one batch, 200 steps: from {losses[0]:.2f} to {losses[-1]:.3f}")

# %% [markdown]
# ## What to take along
#
# - Adam makes steps of about `lr`, whatever the size of the gradient.
# - Warm up, then slow down; clip what is too long.
# - Weight decay acts on the weights, not on the gradient.
# - The held-out curve is the one that counts.
#
# **Where this is in numgpt:** `training/adamw.py`, `training/step.py` (a step on one page),
# `layers/dropout.py`. `numgpt train` does all of this, and survives being interrupted.

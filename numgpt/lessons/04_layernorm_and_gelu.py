# %% [markdown]
# # 4 LayerNorm and GELU
#
# Between its matrix products a GPT does two things to each word's numbers: it brings them to a
# common scale, a row at a time, and it bends each. Both fit on a line, and the backward of the
# first is the best exercise in the chain rule that there is, because $x$ reaches the result by
# *three* ways.

# %%
import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)

# %% [markdown]
# ## Why normalise
#
# A deep model multiplies by one matrix after another. If each makes numbers a little larger, after
# fifty of them they have exploded; if smaller, vanished. Watch:

# %%
_, axis = figure()
for label, scale in (("a little too large", 1.2), ("a little too small", 0.8)):
    x, sizes = rng.normal(size=(1, 64)), []
    for _ in range(50):
        x = x @ rng.normal(0, scale / 8, size=(64, 64))
        sizes.append(np.abs(x).mean())
    axis.semilogy(sizes, label=label)
x, sizes = rng.normal(size=(1, 64)), []
for _ in range(50):
    x = x @ rng.normal(0, 1.2 / 8, size=(64, 64))
    x = (x - x.mean()) / x.std()
    sizes.append(np.abs(x).mean())
axis.semilogy(sizes, label="normalised")
axis.set_xlabel("layer")
axis.set_ylabel("mean size of a number")
axis.legend();

# %% [markdown]
# The flat line has the matrices that are too large, too; but its row is brought back to one scale
# after each of them.
#
# Layer normalisation (Ba et al. 2016, arXiv:1607.06450) takes a row of $C$ numbers, its *features*,
# subtracts their mean, and divides by their standard deviation. So that nothing is lost that the
# model would like to have, it then gives each feature a scale and a shift that are learnt ($\odot$
# multiplies number by number):
#
# $$ \begin{gathered}
#    \hat{x} = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} \qquad
#    y = w \odot \hat{x} + b \\[4pt]
#    \mu = \frac1C\sum_i x_i \qquad
#    \sigma^2 = \frac1C\sum_i (x_i - \mu)^2
#    \end{gathered} $$
#
# $\varepsilon = 10^{-5}$ is there for rows in which nothing varies. It stands *inside* the root,
# and the variance divides by $C$, not by $C - 1$. Whoever loads GPT-2's weights has to do it just
# so.
#
# **Exercise 4.1.** Forward. Return what backward will need: $\hat{x}$ and `rstd`
# $= 1/\sqrt{\sigma^2 + \varepsilon}$.

# %% exercise="4.1"
def layernorm_forward(x, weight, bias, eps=1e-5):
    """x (N, C), weight and bias (C,) -> y (N, C), x_hat (N, C), rstd (N, 1)."""
    # solution
    centred = x - x.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    x_hat = centred * rstd
    return weight * x_hat + bias, x_hat, rstd

# %%
check(layernorm_forward)

# %% [markdown]
# ## Backwards, by three ways
#
# The last step first. From $y = w \odot \hat{x} + b$, each feature by itself,
#
# $$ \mathrm{d}w = \sum_n \mathrm{d}y_n \odot \hat{x}_n \qquad
#    \mathrm{d}b = \sum_n \mathrm{d}y_n \qquad g := \mathrm{d}\hat{x} = \mathrm{d}y \odot w $$
#
# Now one row of $\hat{x} = (x - \mu)\, r$ with $r$ = `rstd`. How does $x_j$ get into $\hat{x}_i$?
#
# | way | contribution to $\partial\hat{x}_i/\partial x_j$ |
# | --- | --- |
# | directly, for $i = j$ | $r\,\delta_{ij}$ |
# | through the mean, $\partial\mu/\partial x_j = 1/C$ | $-r/C$ |
# | through the standard deviation | $-r\,\hat{x}_i\hat{x}_j/C$ |
#
# The third takes a line more. $\sigma^2 = \frac1C\sum_k(x_k - \mu)^2$ has
# $\partial\sigma^2/\partial x_j = \frac2C(x_j - \mu)$ (the mean's own part drops out, as
# $\sum_k (x_k - \mu) = 0$). From $r = (\sigma^2 + \varepsilon)^{-1/2}$ follows
# $\partial r/\partial x_j = -\frac12 r^3 \cdot \frac2C(x_j - \mu) = -r^2\hat{x}_j/C$, and
# $\hat{x}_i$ changes by $(x_i - \mu)$ times that.
#
# Multiply each by $g_i$, and sum over $i$. Two of the sums are means over the row:
#
# $$ \mathrm{d}x = r\,\bigl(g - \operatorname{mean}(g)
#    - \hat{x}\cdot\operatorname{mean}(g \odot \hat{x})\bigr) $$
#
# It has a meaning that is easy to keep. Take from $g$ the part that would shift the whole row, as
# the mean removes shifts anyway; and the part along $\hat{x}$ that would stretch it, as the
# division removes stretching anyway. What is left is all that the loss can feel.
#
# **Exercise 4.2.** All three gradients.

# %% exercise="4.2"
def layernorm_backward(dy, x_hat, rstd, weight):
    """dy, x_hat (N, C), rstd (N, 1), weight (C,) -> dx (N, C), dweight (C,), dbias (C,)."""
    # solution
    g = dy * weight
    g_mean = g.mean(axis=1, keepdims=True)
    g_x_hat_mean = (g * x_hat).mean(axis=1, keepdims=True)
    dx = rstd * (g - g_mean - x_hat * g_x_hat_mean)
    return dx, (dy * x_hat).sum(axis=0), dy.sum(axis=0)

# %%
check(layernorm_backward)

# %% [markdown]
# You can *see* the meaning. Whatever `dy` and the weight are, `dx` has the mean 0 and stands at a
# right angle to $\hat{x}$ (nearly, because of $\varepsilon$):

# %%
x, dy, weight = rng.normal(size=(1, 8)), rng.normal(size=(1, 8)), rng.normal(size=8)
_, x_hat, rstd = layernorm_forward(x, weight, np.zeros(8))
dx, _, _ = layernorm_backward(dy, x_hat, rstd, weight)
cosine = (dx * x_hat).sum() / np.linalg.norm(dx) / np.linalg.norm(x_hat)
print(f"sum of dx {dx.sum():.1e}, cosine of the angle between dx and x_hat {cosine:.1e}")

# %% [markdown]
# **Exercise 4.3.** A colleague has written it for texts of shape $(B, T, C)$. On a batch of one
# text the gradient check passes. On two it fails. **Find the fault.** (The derivation is right.)

# %% exercise="4.3"
def layernorm_backward_of_texts(dy, x_hat, rstd, weight):
    """dy, x_hat (B, T, C), rstd (B, T, 1), weight (C,) -> dx, dweight (C,), dbias (C,)."""
    #: g = dy * weight
    #: dx = rstd * (g - g.mean(-1, keepdims=True) - x_hat * (g * x_hat).mean(-1, keepdims=True))
    #: dweight = (dy * x_hat).mean(axis=0).sum(axis=0)
    #: dbias = dy.mean(axis=0).sum(axis=0)
    #: return dx, dweight, dbias
    # solution
    g = dy * weight
    dx = rstd * (g - g.mean(-1, keepdims=True) - x_hat * (g * x_hat).mean(-1, keepdims=True))
    return dx, (dy * x_hat).sum(axis=(0, 1)), dy.sum(axis=(0, 1))

# %%
check(layernorm_backward_of_texts)

# %% [markdown]
# ## A bend
#
# Without a bend between them, two linear layers are one: $xW_1W_2 = x(W_1W_2)$. ReLU is the
# simplest, and has a corner at 0 and no slope at all below. GELU (Hendrycks & Gimpel 2016,
# arXiv:1606.08415) rounds it off: multiply $x$ by $\Phi(x)$, the probability that a normally
# distributed number is smaller than $x$.
#
# $$ \begin{gathered}
#    \operatorname{gelu}(x) = x\,\Phi(x) \approx \tfrac12 x\,(1 + \tanh u), \\[4pt]
#    u = \sqrt{2/\pi}\,(x + 0.044715\,x^3)
#    \end{gathered} $$
#
# GPT-2 has the approximation with tanh, so we take that one. Backward is the product rule, and the
# chain rule for $u$; recall from lesson 2 that tanh has the slope $1 - \tanh^2$:
#
# $$ \begin{gathered}
#    \mathrm{d}x = \mathrm{d}y\,\Bigl(\tfrac12(1 + t) + \tfrac12 x\,(1 - t^2)\,u'\Bigr), \\[4pt]
#    t = \tanh u, \qquad u' = \sqrt{2/\pi}\,(1 + 3 \cdot 0.044715\,x^2)
#    \end{gathered} $$
#
# **Exercise 4.4.** Backward; forward is given.

# %%
def gelu_forward(x):
    """x, any shape -> y of that shape."""
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(u))

# %% exercise="4.4"
def gelu_backward(dy, x):
    """dy, x of one shape -> dx of that shape."""
    # solution
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    du = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * du)

# %%
check(gelu_backward)

# %%
x = np.linspace(-4, 4, 200)
_, (left, right) = figure(1, 2)
left.plot(x, gelu_forward(x), label="gelu")
left.plot(x, np.maximum(x, 0), "--", label="relu")
left.legend()
right.plot(x, gelu_backward(np.ones_like(x), x), label="its slope")
right.plot(x, (x > 0).astype(float), "--", label="relu's")
right.legend();

# %% [markdown]
# See the dip: up to its lowest point, near $-0.75$, GELU falls, so its slope is negative there, and
# no input but that point is quite without a slope until far to the left. A neuron that is off still
# hears something.
#
# ## Check them all
#
# numgpt's own are in `layers/layernorm.py` and `layers/gelu.py`. They go through the rows in blocks
# that fit the processor's cache, and share them among its cores; their formulas are those you have
# written. The largest differences:

# %%
x, dy = rng.normal(size=(2, 5, 8))
weight, bias = rng.normal(size=(2, 8))
y, x_hat, rstd = layernorm_forward(x, weight, bias)
their_y, cache = numgpt.layers.layernorm_forward(x, weight, bias)
theirs = numgpt.layers.layernorm_backward(dy, cache)
ours = layernorm_backward(dy, x_hat, rstd, weight)
names = ("y", "dx", "dweight", "dbias")
for name, a, b in zip(names, (y, *ours), (their_y, *theirs), strict=True):
    print(f"layernorm {name:7} {abs(a - b).max():.1e}")
_, cache = numgpt.layers.gelu_tanh_forward(x)
theirs = numgpt.layers.gelu_tanh_backward(dy, cache)
print(f"gelu      dx      {abs(gelu_backward(dy, x) - theirs).max():.1e}")

# %% [markdown]
# ## What to take along
#
# - List the ways by which $x$ reaches the result, take the derivative of each, add them up.
# - What a function makes no difference to, its gradient has no part in.
# - A parameter that all rows share has a gradient that sums over *all* rows, whatever axes they are
#   laid out on.

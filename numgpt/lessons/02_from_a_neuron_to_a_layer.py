# %% [markdown]
# # 2 From a neuron to a layer
#
# How wrong a model is can be said in one number, the *loss*; to train is to make it small. All of
# that rests on one question: *if I turn this knob a little, how much does the loss change?* The
# answer is a derivative, and a model has millions of knobs. This lesson answers it for one neuron,
# then for a whole layer of them, where two matrix products do it for every knob at once. And it
# shows how you find out that an answer is wrong, which you will need in every lesson that follows.

# %%
import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)

# %% [markdown]
# ## One neuron
#
# A neuron takes some numbers $x_i$, weighs each with $w_i$, adds a bias $b$, and bends the sum:
#
# $$ z = \sum_i w_i x_i + b \qquad\qquad y = \tanh(z) $$
#
# Say that $y$ goes on to other neurons and at last a loss $L$ comes out. What we are told is
# $\partial L / \partial y$: by how much the loss changes for a small change of $y$. In code we
# write `dy` for it, and `dx` for $\partial L/\partial x$, always.
#
# Now go backwards, one step at a time. $y = \tanh(z)$ has the slope $1 - \tanh^2(z) = 1 - y^2$. So
#
# $$ \frac{\partial L}{\partial z} = \frac{\partial L}{\partial y} \cdot (1 - y^2) $$
#
# That is the chain rule: a small change of $z$ makes $1 - y^2$ times that change of $y$, which
# makes $\partial L/\partial y$ times *that* change of the loss. And $z$ is a plain sum, where $w_i$
# stands beside $x_i$ and $b$ alone:
#
# $$ \frac{\partial L}{\partial w_i} = \frac{\partial L}{\partial z}\, x_i \qquad
#    \frac{\partial L}{\partial x_i} = \frac{\partial L}{\partial z}\, w_i \qquad
#    \frac{\partial L}{\partial b} = \frac{\partial L}{\partial z} $$
#
# With numbers: $x = (1, 2)$, $w = (0.5, -0.25)$, $b = 0.1$ give $z = 0.1$ and $y = 0.0997$. With
# `dy` = 2, `dz` = $2 \cdot (1 - 0.0099) = 1.98$, so `dw` = $(1.98, 3.96)$ and `dx` =
# $(0.99, -0.495)$.
#
# **Exercise 2.1.** Write it. `y` is handed back to you so that you need not compute it again: what
# forward keeps for backward is called its *cache*.

# %%
def neuron_forward(x, w, b):
    """x, w (I,), b a number -> y, a number."""
    return np.tanh(w @ x + b)

# %% exercise="2.1"
def neuron_backward(dy, x, w, y):
    """dy, a number; x, w (I,) and y as in forward -> dx (I,), dw (I,), db."""
    # solution
    dz = dy * (1 - y**2)
    return dz * w, dz * x, dz

# %%
check(neuron_backward)

# %% [markdown]
# ## Is it right?
#
# There is a way to know that needs no cleverness. Turn one knob by a tiny $h$, up and down, and see
# what comes out:
#
# $$ \frac{\partial L}{\partial x_i} \approx \frac{L(x + h e_i) - L(x - h e_i)}{2h} $$
#
# where $e_i$ is 1 at place $i$ and 0 elsewhere. Why both sides? The Taylor series says
# $L(x + h) = L + hL' + \tfrac{1}{2}h^2 L'' + \tfrac{1}{6}h^3 L''' \dots$, and in the difference of
# the two sides the terms with even powers cancel, so the error is of the order $h^2$ instead of
# $h$.

# %%
def slope_errors(steps):
    """The error of both ways, for tanh at 0.7."""
    exact = 1 - np.tanh(0.7) ** 2
    one = [abs((np.tanh(0.7 + h) - np.tanh(0.7)) / h - exact) for h in steps]
    both = [abs((np.tanh(0.7 + h) - np.tanh(0.7 - h)) / (2 * h) - exact) for h in steps]
    return one, both


steps = 10.0 ** -np.arange(1, 13)
_, axis = figure()
for error, label in zip(slope_errors(steps), ("one side", "both sides"), strict=True):
    axis.loglog(steps, error, marker="o", label=label)
axis.set_xlabel("step h")
axis.set_ylabel("error of the slope")
axis.legend();

# %% [markdown]
# Read the picture from right to left, from large steps to small ones. At first the error shrinks
# with the step, that of both sides twice as steeply ($h^2$ for $h$). From some point on it *grows*
# again: a computer has 16 digits, and the difference of two nearly equal numbers keeps few of them.
# Both sides with $h = 10^{-5}$ get ten digits right. That is plenty: most wrong derivatives are
# wrong in the first few.
#
# **Exercise 2.2.** Write the numerical gradient by this formula, with the `h` that is handed in, of
# any function of any array, however many axes it has. Leave `x` as it was.

# %% exercise="2.2"
def numerical_gradient(f, x, h=1e-5):
    """f, which makes a number of an array; x, an array of floats -> the gradient, of x's shape."""
    # solution
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += h
        down[place] -= h
        gradient[place] = (f(up) - f(down)) / (2 * h)
    return gradient

# %%
check(numerical_gradient)

# %% [markdown]
# With it you never have to trust a derivation, mine or yours. Where a function returns not a loss
# but a $y$ that goes on to one, choose any `dy` and let the loss be $L = \sum \mathrm{d}y \cdot y$:
# then $\partial L/\partial y$ is just that `dy`.

# %%
x, w, b, dy = rng.normal(size=3), rng.normal(size=3), 0.3, 2.0
dx, dw, db = neuron_backward(dy, x, w, neuron_forward(x, w, b))
print("dw    derived ", dw)
print("    numerical ", numerical_gradient(lambda w: dy * neuron_forward(x, w, b), w))

# %% [markdown]
# Why not train with it, then? One number needs two forward passes. GPT-2's smallest has 124 million
# numbers; a backward gives all of them for the price of two forward passes. That is the whole
# reason why backwards are derived.
#
# ## A layer
#
# A layer is $O$ neurons that see the same $I$ inputs, and we run it on $N$ rows at once: words of a
# text. We leave the bend out (it will be a layer of its own). Weights are a matrix $W$ of shape
# $(I, O)$, with a column for each neuron:
#
# $$ y_{no} = \sum_i x_{ni} W_{io} + b_o \qquad\text{or}\qquad Y = XW + b $$
#
# **Exercise 2.3.** Forward.

# %% exercise="2.3"
def linear_forward(x, weight, bias):
    """x (N, I), weight (I, O), bias (O,) -> y (N, O), and a cache for backward: (x, weight)."""
    # solution
    return x @ weight + bias, (x, weight)

# %%
check(linear_forward)

# %% [markdown]
# Now backward. The neuron's rules hold still, but each knob now reaches the loss by *several* ways,
# and **ways add up**:
#
# - $x_{ni}$ goes into all $O$ neurons. So $\mathrm{d}x_{ni} = \sum_o \mathrm{d}y_{no} W_{io}$.
# - $W_{io}$ is used for all $N$ rows. So $\mathrm{d}W_{io} = \sum_n x_{ni}\, \mathrm{d}y_{no}$.
# - $b_o$ too. So $\mathrm{d}b_o = \sum_n \mathrm{d}y_{no}$.
#
# A sum over an index that two arrays share is a matrix product. The sums say which one, and shapes
# help to remember it: $\mathrm{d}X$ must be $(N, I)$, made of $\mathrm{d}Y$ $(N, O)$ and $W$
# $(I, O)$. (So test with three different sizes: square matrices fit every way.)
#
# $$ \mathrm{d}X = \mathrm{d}Y\, W^\top \qquad \mathrm{d}W = X^\top \mathrm{d}Y \qquad
#    \mathrm{d}b = \sum_n \mathrm{d}Y_n $$
#
# **Exercise 2.4.** Three lines.

# %% exercise="2.4"
def linear_backward(dy, cache):
    """dy (N, O), cache as forward returns it -> dx (N, I), dweight (I, O), dbias (O,)."""
    # solution
    x, weight = cache
    return dy @ weight.T, x.T @ dy, dy.sum(axis=0)

# %%
check(linear_backward)

# %% [markdown]
# This pair is most of a GPT: nine of ten multiplications in the model happen in these three
# products. numgpt's own is in `layers/linear.py`, and computes the same:

# %%
x, weight, bias = rng.normal(size=(4, 3)), rng.normal(size=(3, 2)), rng.normal(size=2)
dy = rng.normal(size=(4, 2))
y, cache = numgpt.layers.linear_forward(x, weight, bias)
theirs = numgpt.layers.linear_backward(dy, cache)
ours = linear_backward(dy, linear_forward(x, weight, bias)[1])
print([float(abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)])
print("gradcheck:", numgpt.gradcheck(linear_forward, linear_backward, x, weight, bias))

# %% [markdown]
# `numgpt.gradcheck(forward, backward, *inputs)` is your exercise 2.2, for any pair of functions: it
# draws a random `dy`, lets the loss be $\sum \mathrm{d}y \cdot y$, and compares.
#
# ## Layers on layers
#
# A network is functions one after another: $L = f_3(f_2(f_1(x)))$. Backward goes through them in
# reverse, each handing its `dx` to the one before as that one's `dy`. No function needs to know the
# others. And when the output of one goes to *two* places, what comes back from both is **added**:
# ways add up, again.
#
# The function below is a layer, a bend (ReLU: negative numbers become 0), another layer, and its
# input added to its output: $Y = X + \mathrm{relu}(XW_1)\,W_2$. Its gradient check fails. **Find
# the two faults.**
#
# **Exercise 2.5.** Mend `branch_backward`.

# %%
def branch_forward(x, w1, w2):
    """x (N, C), w1 (C, F), w2 (F, C) -> y (N, C), cache."""
    a = x @ w1
    h = np.maximum(a, 0)
    return x + h @ w2, (x, a, h, w1, w2)

# %% exercise="2.5"
def branch_backward(dy, cache):
    """dy (N, C) -> dx (N, C), dw1 (C, F), dw2 (F, C)."""
    #: x, a, h, w1, w2 = cache
    #: dh = dy @ w2.T
    #: dw2 = h.T @ dy
    #: da = dh
    #: dw1 = x.T @ da
    #: dx = da @ w1.T
    #: return dx, dw1, dw2
    # solution
    x, a, h, w1, w2 = cache
    dh = dy @ w2.T
    dw2 = h.T @ dy
    da = dh * (a > 0)
    dw1 = x.T @ da
    dx = dy + da @ w1.T
    return dx, dw1, dw2

# %%
check(branch_backward)

# %%
try:
    inputs = rng.normal(size=(4, 3)), rng.normal(size=(3, 5)), rng.normal(size=(5, 3))
    print("gradcheck:", numgpt.gradcheck(branch_forward, branch_backward, *inputs))
except AssertionError as error:
    print("gradcheck:", error)

# %% [markdown]
# ## Learning something
#
# Enough to train. Here two layers with a bend learn a wave from 60 points; each step computes all
# gradients, and moves every number a little against its own. (They begin at random; the second
# layer's are divided by 6, about $\sqrt{32}$, so that the sum of 32 products begins near 1.)

# %%
rng = np.random.default_rng(1)
x = np.linspace(-3, 3, 60)[:, None]
target = np.sin(2 * x) * np.exp(-(x**2) / 6)
p = [rng.normal(size=(1, 32)), rng.normal(size=32), rng.normal(size=(32, 1)) / 6, np.zeros(1)]
losses = []
for _ in range(3000):
    a, first = linear_forward(x, p[0], p[1])
    h = np.tanh(a)
    y, second = linear_forward(h, p[2], p[3])
    losses.append(((y - target) ** 2).mean())
    dy = 2 * (y - target) / len(x)  # of the mean of squares
    dh, *d_second = linear_backward(dy, second)
    _, *d_first = linear_backward(dh * (1 - h**2), first)
    for knob, slope in zip(p, (*d_first, *d_second), strict=True):
        knob -= 0.05 * slope
_, (left, right) = figure(1, 2)
left.semilogy(losses)
left.set_xlabel("step")
left.set_ylabel("loss")
right.plot(x, target, "o", markersize=3, label="points")
right.plot(x, y, label="network")
right.legend();

# %% [markdown]
# ## What to take along
#
# - `dx` means ∂loss/∂x, and has x's shape. Always.
# - Backward is the chain rule, one function at a time, in reverse.
# - What reaches the loss in several ways adds up.
# - A sum over an index that two arrays share is a matrix product.
# - Never trust a derivation that no numerical check has seen.
#
# **Where this is in numgpt:** `layers/linear.py`, and `layers/gradcheck.py`.

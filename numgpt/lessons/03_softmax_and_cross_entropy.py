# %% [markdown]
# # 3 Softmax and cross-entropy
#
# A language model answers one question, over and over: *which id comes next?* It gives every id of
# the vocabulary a score, a **logit**. This lesson makes probabilities of the logits, says what a
# good answer is worth in one number, and goes backwards through both. At the end stands the most
# beautiful formula of the course: the gradient of the loss by the logits is *what was predicted
# minus what came*.

# %%
import numpy as np

from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)

# %% [markdown]
# ## Softmax
#
# Logits may be any numbers. Probabilities are positive, and their sum is 1. The exponential makes
# any number positive, and dividing by the sum does the rest:
#
# $$ p_i = \frac{e^{z_i}}{\sum_j e^{z_j}} $$
#
# Only differences of logits matter: add 100 to all, and numerator and denominator both grow by the
# factor $e^{100}$. This is a gift, as $e^{1000}$ is more than a computer can hold (in float32
# $e^{89}$ is already too much), and $\infty/\infty$ is no number. So **subtract the largest logit
# first**. Then no exponent is above 0, and the largest term is $e^0 = 1$, so the sum is never 0
# either.
#
# **Exercise 3.1.** Softmax of each row. The check comes with logits of a thousand, and with rows
# that differ a lot.

# %% exercise="3.1"
def softmax(z):
    """z (N, V) -> p (N, V): each row's probabilities."""
    # solution
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)

# %%
check(softmax)

# %%
_, axes = figure(1, 3, width=3)
for axis, temperature in zip(axes, (2, 1, 0.3), strict=True):
    axis.bar(range(6), softmax(np.array([[2.0, 1, 0.5, 0, -1, -2]]) / temperature)[0])
    axis.set_title(f"logits / {temperature}")
    axis.set_ylim(0, 1)
    axis.set_xlabel("id")
axes[0].set_ylabel("probability");

# %% [markdown]
# Dividing the logits by a *temperature* before the softmax makes the answer bolder (below 1) or
# shyer (above). You will need it when the model writes.
#
# ## Backwards through softmax
#
# Each $z_j$ moves *all* the probabilities, as it is in everyone's denominator. By the quotient
# rule,
#
# $$ \frac{\partial p_i}{\partial z_j} = p_i(\delta_{ij} - p_j) $$
#
# where $\delta_{ij}$ is 1 for $i = j$ and 0 otherwise: the numerator speaks only for $i = j$, the
# denominator always. Ways add up, so sum over $i$:
#
# $$ \mathrm{d}z_j = \sum_i \mathrm{d}p_i\, p_i(\delta_{ij} - p_j)
#    = p_j\Bigl(\mathrm{d}p_j - \sum_i \mathrm{d}p_i\, p_i\Bigr) $$
#
# In words: compare the slope at each probability with the average of all slopes, weighted by how
# much there is of each. That is it, without any $V \times V$ matrix. Attention will need this one.
#
# **Exercise 3.2.** Write it for all rows at once.

# %% exercise="3.2"
def softmax_backward(dp, p):
    """dp, p (N, V) -> dz (N, V)."""
    # solution
    return p * (dp - (dp * p).sum(axis=1, keepdims=True))

# %%
check(softmax_backward)

# %% [markdown]
# ## What an answer is worth
#
# Say that id $t$ came. A good model would have given it a high probability. The loss is the
# negative (natural) logarithm of that probability, the **surprise**:
#
# $$ \ell = -\log p_t $$
#
# | $p_t$ | 1 | 0.5 | 0.1 | 0.01 | 1/50257 |
# | --- | --- | --- | --- | --- | --- |
# | $-\log p_t$ | 0 | 0.69 | 2.30 | 4.61 | 10.82 |
#
# The last column is a model that knows nothing, and gives all 50257 ids of GPT-2's vocabulary the
# same: about where training begins. Why the logarithm? Probabilities of a whole text are
# multiplied, and their logarithms add up; so the mean over all places is the loss of the text,
# whatever its length. And $e^\text{loss}$, the *perplexity*, is the number of equally likely ids
# that would surprise as much.
#
# The loss over $N$ rows is the mean. Now comes the beautiful part. With
# $\log p_t = z_t - \log\sum_j e^{z_j}$ and the derivative of the last term being
# $e^{z_i}/\sum_j e^{z_j} = p_i$,
#
# $$ \frac{\partial \ell}{\partial z_i} = p_i - [i = t] $$
#
# where $[i = t]$ is 1 at the target and 0 elsewhere; a row of these is called *one-hot*. What was
# predicted minus what came. No logarithm, no quotient; and never larger than 1, which is why
# training with it is so calm.
#
# One more trap: compute $\log p_t$ as $z_t - M - \log\sum_j e^{z_j - M}$ with $M$ the largest
# logit. Taking the logarithm of a finished $p_t$ gives $-\infty$ as soon as $p_t$ is too small to
# be stored.
#
# **Exercise 3.3.** The mean loss and its gradient, in one function. Mind the mean: it divides the
# gradient too.

# %% exercise="3.3"
def cross_entropy(z, targets):
    """z (N, V), targets (N,) ids -> loss, dz (N, V)."""
    # solution
    rows = np.arange(len(z))
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    dz = np.exp(log_p)
    dz[rows, targets] -= 1
    return -log_p[rows, targets].mean(), dz / len(z)

# %%
check(cross_entropy)

# %% [markdown]
# See it at work: logits of five ids, pushed along $-\mathrm{d}z$ again and again, for one and the
# same target. The push shrinks by itself as the prediction gets better.

# %%
z, history = np.array([[0.5, 1.0, -0.3, 0.2, 0.8]]), []
for _ in range(40):
    history.append(softmax(z)[0])
    z = z - 0.5 * cross_entropy(z, np.array([2]))[1]
_, axis = figure()
axis.stackplot(range(40), np.array(history).T, labels=[f"id {i}" for i in range(5)])
axis.set_xlabel("step")
axis.set_ylabel("probability")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5));

# %% [markdown]
# ## Places that do not count
#
# Texts have different lengths, so the shorter ones are filled up; and when a model learns to
# answer, the question should not be learnt. Such places get the target −100, as everybody does it,
# and count for nothing: neither in the sum, *nor in the number it is divided by*, nor in the
# gradient. If nothing counts at all, the loss is 0, and not 0/0.
#
# **Exercise 3.4.** Use what you have: `cross_entropy` of the rows that count.

# %% exercise="3.4"
def masked_cross_entropy(z, targets):
    """As cross_entropy, over the rows whose target is not -100."""
    # solution
    counted = targets != -100
    dz = np.zeros_like(z)
    if not counted.any():
        return 0.0, dz
    loss, dz[counted] = cross_entropy(z[counted], targets[counted])
    return loss, dz

# %%
check(masked_cross_entropy)

# %% [markdown]
# ## A mean of means is no mean
#
# A step of training sees a *batch* of rows. One that does not fit into memory is cut into
# micro-batches, whose gradients are added up. Now suppose that two of them count 8 and 2 rows. The
# mean over all ten is not the mean of the two means: a row of the small one would count four times
# as much. This mistake was in most training libraries until 2024. The way out is to know the count
# of the *whole* step before the first gradient.
#
# **Exercise 3.5.** The function below was written in a hurry. Mend it: all rows of the step that
# count are to count the same, however it is cut. (Now and then none counts in the whole step.)

# %% exercise="3.5"
def loss_of_step(batches):
    """batches, a list of (z, targets) -> the loss of all, and a list of their dz."""
    #: results = [masked_cross_entropy(z, targets) for z, targets in batches]
    #: loss = sum(loss for loss, _ in results) / len(batches)
    #: return loss, [dz / len(batches) for _, dz in results]
    # solution
    counts = [np.count_nonzero(targets != -100) for _, targets in batches]
    shares = np.array(counts) / max(1, sum(counts))
    results = [masked_cross_entropy(z, targets) for z, targets in batches]
    loss = sum(share * loss for share, (loss, _) in zip(shares, results, strict=True))
    return loss, [share * dz for share, (_, dz) in zip(shares, results, strict=True)]

# %%
check(loss_of_step)

# %% [markdown]
# ## A first language model
#
# With this you can train one: a table of logits, one row for each character, that says what comes
# after it. Its best possible loss is known: that of the table that counts how often each character
# follows each. See how near your gradient comes. (A row that was looked up several times gets the
# sum of what comes back: ways add up, and `np.add.at` adds them. Each row of 2000 has a 2000th of
# the gradient, so the steps are large.)

# %%
from pydoc_data.topics import topics

text = "\n".join(topics.values()).encode("ascii", "ignore").decode()[:200_000]
characters = sorted(set(text))
ids = np.searchsorted(characters, list(text))
V = len(characters)
counts = np.zeros((V, V))
np.add.at(counts, (ids[:-1], ids[1:]), 1)
p = counts / counts.sum(axis=1, keepdims=True).clip(1)
best = -(counts * np.log(p, where=p > 0, out=np.zeros_like(p))).sum() / counts.sum()

table, losses = np.zeros((V, V)), []
for _ in range(400):
    places = rng.integers(len(ids) - 1, size=2000)
    loss, dz = cross_entropy(table[ids[places]], ids[places + 1])
    np.add.at(table, ids[places], -40 * dz)
    losses.append(loss)
_, axis = figure()
axis.plot(losses, label="trained")
axis.axhline(best, color="grey", linestyle="--", label="counted")
axis.set_xlabel("step")
axis.set_ylabel("loss")
axis.legend();

# %%
written, cumulative = [characters.index("T")], softmax(table).cumsum(axis=1)
for _ in range(200):
    written.append(int(np.searchsorted(cumulative[written[-1]], rng.random()).clip(0, V - 1)))
print("".join(characters[id] for id in written))

# %% [markdown]
# (A character is drawn by its probability: a random number falls among the cumulated ones.) The
# model sees one character and guesses the next. Nonsense, of about the right shape. And the loss
# comes near the counted one, and not quite to it: rows of rare characters are seldom looked up. All
# that a GPT does beyond this is to look further back.
#
# ## What to take along
#
# - Subtract the largest logit before any exponential.
# - `dz = p − onehot`, divided by what the mean divides by.
# - What does not count, counts nowhere; and the count is that of the whole step.
#
# **Where this is in numgpt:** `layers/softmax.py`, and `layers/cross_entropy.py`, which joins this
# lesson's loss with the linear layer before it, as the logits of a real vocabulary are the largest
# array in the model.

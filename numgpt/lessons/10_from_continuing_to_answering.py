# %% [markdown]
# # 10 From continuing to answering
#
# A model that has read the internet continues texts. Give it a question, and it may well continue
# with three more questions. What turned GPT into ChatGPT is what came after: examples of answers,
# people's preferences between answers, and rewards. All of it is about one quantity, the
# probability of a whole answer $y$ to a prompt $x$. This lesson shows how each of them uses it,
# and trains a small model with each.

# %%
import numpy as np

import numgpt
from numgpt.lessons import check, figure, solution, yours

# %% [markdown]
# ## log P(y | x)
#
# The probability of an answer is the product of its ids' probabilities, each after the prompt and
# the part of the answer before it. So its logarithm is a sum:
#
# $$ \log P(y|x) = \sum_t \log p(y_t \mid x, y_{<t}) $$
#
# Two things easily go wrong here. The logits *at* a position speak of the *next* id, so there is a
# shift by one. And only the answer's ids are added up; the prompt was given.
#
# With a prompt of 2 ids and an answer of 3, `ids` = (a, b, c, d, e): the logits at b predict c,
# those at c predict d, those at d predict e. Those are the three that count.
#
# **Exercise 10.1.** The logarithm of the probability of the answer.

# %% exercise="10.1"
def log_prob_of_answer(logits, ids, prompt_length):
    """logits (T, V), at each of the ids (T,), the first of which are the prompt -> log P(y|x)."""
    # solution
    z = logits - logits.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    places = np.arange(prompt_length, len(ids))
    return log_p[places - 1, ids[places]].sum()

# %%
check(log_prob_of_answer)

# %% [markdown]
# **Supervised fine-tuning** (SFT) is training as in lesson 7, on $-\log P(y|x)$ of good answers,
# divided by the number of their ids: lesson 3's masked cross-entropy, with −100 at the prompt.
#
# ## LoRA: a few numbers instead of all
#
# Tuning changes a matrix $W$ by some $\Delta W$ of the same size. LoRA (Hu et al. 2021,
# arXiv:2106.09685) freezes $W$, and only allows changes of a low rank $r$, perhaps 8:
# $\Delta W = s\,A^\top B^\top$ with $A$ $(r, I)$, $B$ $(O, r)$ and a fixed scale $s$. For a matrix
# of 576 × 1536 that is 8 · (576 + 1536), 17 thousand numbers to train, instead of 885 thousand.
#
# $$ y = xW + s\,\underbrace{xA^\top}_{u} B^\top $$
#
# The second term is two linear layers, one after the other, both stored as (out, in). $B$ begins at
# 0, so that the model is at first what it was. $A$ begins at random: the gradient of each has the
# other as a factor, so were both 0, both would stay so.
#
# **Exercise 10.2.** Backward of the second term. The scale appears exactly once in each of dx, da
# and db.

# %% exercise="10.2"
def lora_backward(dy, x, a, b, scale):
    """dy (N, O), x (N, I), a (r, I), b (O, r), for y = scale · x aᵀ bᵀ
    -> dx (N, I), da (r, I), db (O, r)."""
    # solution
    u = x @ a.T
    du = scale * dy @ b
    return du @ a, du.T @ x, scale * dy.T @ u

# %%
check(lora_backward)

# %% [markdown]
# Here the shipped model, which knows Shakespeare and nothing else, learns two answers by heart. The
# first three functions are for all that follows: a model with an adapter; −100 in place of the
# prompt's targets; twelve more ids, written by the model. (If you left the exercise out:
# `log_prob_of_answer = yours("10.1")`.)

# %%
_, tokenizer = numgpt.load("shakespeare")


def fresh_model():
    model, _ = numgpt.load("shakespeare")
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}  # s = lora_alpha / r = 2
    model.add_adapter(numgpt.LoRAConfig(**options), seed=0)
    return model  # of which the adapter alone trains


def inputs_and_targets(ids, prompt_length):
    targets = ids[..., 1:].copy()
    targets[..., : prompt_length - 1] = -100
    return ids[..., :-1], targets


def write(model, prompt, **options):
    x = tokenizer.encode(prompt)
    ids = model.generate(x, max_new_tokens=12, eos_token_id=[], generation_config={}, **options)
    return ids, [tokenizer.decode(row[len(x) :]) for row in ids]


model = fresh_model()
trains = model.num_parameters(trainable=True)
print(f"{trains:,} of {model.num_parameters():,} numbers train")
answers = {"Who art thou?\n": "A model, sir.\n", "Art thou alive?\n": "No, good sir, I count.\n"}
optimizer = numgpt.AdamW(model, lr=5e-3, weight_decay=0.0)
for _ in range(40):
    for prompt, answer in answers.items():
        x, y = tokenizer.encode(prompt), tokenizer.encode(answer)
        model.loss_and_grads(*inputs_and_targets(np.array(x + y), len(x)))
        optimizer.step()
for prompt, answer in answers.items():
    x, y = tokenizer.encode(prompt), tokenizer.encode(answer)
    ids = np.array(x + y)
    log_p = log_prob_of_answer(model(ids)[0], ids, len(x))
    with model.without_adapter():
        before = log_prob_of_answer(model(ids)[0], ids, len(x))
    _, (text,) = write(model, prompt, do_sample=False)
    print(f"{prompt.strip()} -> {text.splitlines()[0]}  (log P {log_p:.2f}, before {before:.1f})")

# %% [markdown]
# ## DPO: which of two is better
#
# Writing good answers is hard; saying which of two is better is easy. Let $y^+$ be preferred to
# $y^-$. ChatGPT's way was to train a *reward model* first, which gives each answer a number
# $r(y)$, so that $y^+$ is preferred with the probability $\sigma(r(y^+) - r(y^-))$, where
# $\sigma(z) = 1/(1 + e^{-z})$; and then to tune for high rewards.
#
# DPO (Rafailov et al. 2023, arXiv:2305.18290) does without a reward model. The model that is
# tuned, called the *policy*, with $\pi(y)$ for its $P(y|x)$, is its own reward model: an answer's
# reward is how much likelier the policy makes it than the *reference* does, the model before its
# tuning,
#
# $$ r(y) = \beta\,\bigl(\log\pi(y) - \log\pi_\text{ref}(y)\bigr) $$
#
# This is not arbitrary. Look for the policy with the largest mean reward minus $\beta$ times the
# *KL divergence*, which says how far it is from the reference: the mean of
# $\log\pi(y) - \log\pi_\text{ref}(y)$ over what $\pi$ writes. For the best one that equation holds,
# up to a constant that is the same for all answers to $x$ (`objectives/dpo.py` derives it), and
# drops out of the difference of two. What is left is a loss of pairs:
#
# $$ \begin{gathered}
#    \Delta = \bigl(\log\pi(y^+) - \log\pi_\text{ref}(y^+)\bigr)
#    - \bigl(\log\pi(y^-) - \log\pi_\text{ref}(y^-)\bigr) \\
#    \ell = -\log\sigma(\beta\Delta)
#    \end{gathered} $$
#
# As $\frac{d}{dz}\log\sigma(z) = \sigma(-z)$, a pair that is ranked right by a wide margin has
# almost no gradient left.
#
# **Exercise 10.3.** The mean of $\ell$ over pairs, and its gradient by each log-probability of the
# policy.

# %% exercise="10.3"
def dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    """log P of each answer (B,), by the model and by the reference -> loss, dchosen, drejected."""
    # solution
    z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    wrong = 1 / (1 + np.exp(z))  # σ(-z)
    dchosen = -beta * wrong / len(z)
    return np.logaddexp(0, -z).mean(), dchosen, -dchosen

# %%
check(dpo)

# %% [markdown]
# Let somebody prefer texts with many o's. The model writes 64 pairs of continuations; of each, the
# one with the larger share of o's counts as chosen; and we train on these pairs. `value_and_grads`
# computes the log-probability of each target (B, T), 0 at the prompt, and calls an objective with
# it, which returns the loss, its gradient by each (what stands at the prompt is ignored), and a
# dictionary of anything else to report. (If you left the exercise out: `dpo = yours("10.3")`.)

# %%
def sample(count, seed):
    """Continuations: ids, targets (count, T), texts; o's in a hundred characters (count,)."""
    options = {"do_sample": True, "top_k": None}  # drawn from π itself, nothing cut off
    ids, texts = write(model, "ROMEO:\n", num_return_sequences=count, seed=seed, **options)
    rewards = np.array([100 * text.lower().count("o") / len(text) for text in texts])
    return *inputs_and_targets(ids, ids.shape[1] - 12), texts, rewards


model = fresh_model()
ids, targets, _, rewards = sample(128, seed=1)
first, second = np.arange(0, 128, 2), np.arange(1, 128, 2)
better = rewards[first] >= rewards[second]
order = np.concatenate([np.where(better, first, second), np.where(better, second, first)])
ids, targets = ids[order], targets[order]  # the chosen ones, then the rejected ones
with model.without_adapter():  # the reference
    ref_chosen, ref_rejected = np.split(model.log_probs(ids, targets).sum(axis=1), 2)


def by_pairs(logps):
    chosen, rejected = np.split(logps.sum(axis=1), 2)
    loss, dchosen, drejected = dpo(chosen, rejected, ref_chosen, ref_rejected)
    each = np.concatenate([dchosen, drejected])[:, None]  # log P is a sum: so for each id
    return loss, np.broadcast_to(each, logps.shape), {}


optimizer = numgpt.AdamW(model, lr=2e-3, weight_decay=0.0)
for _ in range(20):
    model.value_and_grads(ids, targets, by_pairs)
    optimizer.step()
*_, after = sample(128, seed=2)
print(f"o's in a hundred characters: {rewards.mean():.1f} before, {after.mean():.1f} after")

# %% [markdown]
# ## GRPO: rewards for what it writes itself
#
# Pairs that were written once grow stale, as the model changes. *Reinforcement learning* lets the
# model write, rewards what it has written, and makes likelier what was rewarded. GRPO (Shao et al.
# 2024, arXiv:2402.03300), with which DeepSeek's models learnt to reason, lets it answer the *same*
# prompt several times, and compares. What got more than the mean of that group becomes likelier,
# what got less, less likely. With $r_i$ the reward of $y_i$, and $A_i$ its *advantage*,
#
# $$ \ell = -\sum_i A_i \log\pi(y_i), \qquad
#    A_i = \frac{r_i - \operatorname{mean}(r)}{\operatorname{std}(r) + 10^{-4}} $$
#
# Why not just $r_i$? As $\nabla\pi = \pi\,\nabla\log\pi$, the gradient of the expected reward by
# the weights is the mean of $r\,\nabla\log\pi$ over what the model writes:
#
# $$ \nabla\sum_y \pi(y)\,r(y) = \sum_y \pi(y)\,r(y)\,\nabla\log\pi(y) $$
#
# With a number $b$ that is the same for every answer, in place of $r$, this is
# $b\,\nabla\sum_y\pi(y) = b\,\nabla 1 = 0$. So subtracting such a number from all rewards does not
# change the gradient in the mean, and a good one, as the mean reward, takes off noise. (The group's
# own mean has $r_i$ in it, which only makes the gradient a bit shorter.) The division makes the
# scale of the rewards irrelevant.
#
# **Exercise 10.4.** The advantages. The standard deviation divides by $n - 1$ (`ddof=1`), as in the
# common implementations. If a whole group got the same reward, its advantages are 0.

# %% exercise="10.4"
def advantages_of_groups(rewards, size):
    """rewards (B,), groups of `size` one after another -> advantages (B,)."""
    # solution
    groups = rewards.reshape(-1, size)
    apart = groups - groups.mean(axis=1, keepdims=True)
    return (apart / (groups.std(axis=1, ddof=1, keepdims=True) + 1e-4)).ravel()

# %%
check(advantages_of_groups)

# %% [markdown]
# Writing is slow, so one takes several steps on what was written. From the second on, the model is
# no longer the one that wrote it. How far an id $y_t$ has moved says the ratio
# $\rho = \pi(y_t)/\pi_\text{old}(y_t)$ of its probability (after all that stands before it) to that
# when it was written, and PPO's clip (Schulman et al. 2017, arXiv:1707.06347) stops pushing one
# that has moved far enough. For each id, with $\varepsilon = 0.2$,
#
# $$ \ell = -\min\bigl(\rho A,\ \operatorname{clip}(\rho, 1-\varepsilon, 1+\varepsilon)\,A\bigr) $$
#
# | answer | pushes | stops, with gradient 0, where |
# | --- | --- | --- |
# | good, $A > 0$ | $\rho$ up | $\rho > 1 + \varepsilon$ |
# | bad, $A < 0$ | $\rho$ down | $\rho < 1 - \varepsilon$ |
#
# It stops nowhere else: a good answer with $\rho < 1 - \varepsilon$ became less likely by mistake,
# and must be allowed to come back. As $\rho = e^{\log\pi - \log\pi_\text{old}}$, its derivative by
# $\log\pi$ is $\rho$; so where $\rho = 1$ the gradient is that of $-A\log\pi$.
#
# **Exercise 10.5.** The function below misses one thing that was just said. Find the
# fault, and mend the gradient. (The loss is right.)

# %% exercise="10.5"
def policy_loss(logp, old_logp, advantages, epsilon=0.2):
    """logp, old_logp, advantages, of each id, of one shape -> loss, a sum; dlogp."""
    #: ratio = np.exp(logp - old_logp)
    #: held = np.clip(ratio, 1 - epsilon, 1 + epsilon)
    #: loss = -np.minimum(ratio * advantages, held * advantages).sum()
    #: dlogp = np.where(ratio == held, -ratio * advantages, 0)
    #: return loss, dlogp
    # solution
    ratio = np.exp(logp - old_logp)
    held = np.clip(ratio, 1 - epsilon, 1 + epsilon)
    loss = -np.minimum(ratio * advantages, held * advantages).sum()
    dlogp = np.where(ratio * advantages <= held * advantages, -ratio * advantages, 0)
    return loss, dlogp

# %%
check(policy_loss)

# %% [markdown]
# All together: write 16 continuations, reward each, take two steps on them, and again. Every id of
# an answer gets the answer's $A$, and the loss is the mean over ids. (If you left them out:
# `advantages_of_groups, policy_loss = yours("10.4", "10.5")`.)

# %%
def by_rewards(logps):
    loss, dlogps = policy_loss(logps, old, advantages)
    count = (targets >= 0).sum()
    return loss / count, dlogps / count, {}


model = fresh_model()
optimizer, curve = numgpt.AdamW(model, lr=1e-3, weight_decay=0.0), []
for rollout in range(25):
    ids, targets, texts, rewards = sample(16, seed=1000 + rollout)
    curve.append(rewards.mean())
    advantages = np.broadcast_to(advantages_of_groups(rewards, 16)[:, None], targets.shape)
    old = model.log_probs(ids, targets)
    for _ in range(2):
        model.value_and_grads(ids, targets, by_rewards)
        optimizer.step(grad_clip=1.0)

with model.without_adapter():
    drift = (old - model.log_probs(ids, targets)).sum(axis=1).mean()
print(f"o's: from {curve[0]:.1f} to {np.mean(curve[-5:]):.1f}; KL divergence: {drift:.0f} nats")
for text in texts[:4]:
    print(repr(text))
_, axis = figure()
axis.plot(curve)
axis.set_xlabel("rollout")
axis.set_ylabel("o's in a hundred characters");

# %% [markdown]
# Look at what it writes now, and you see the other half of the story. It was rewarded for o's, and
# repeats names such as ROMEO: two of its five letters are o's. Nobody meant that, and whether it
# still speaks English was not asked. That is why a model is often charged for leaving the
# reference: $\beta$ times the KL divergence, estimated above, is taken off the reward, or added to
# the loss. And it is why a reward that says what is meant is the hard part.
#
# ## What to take along
#
# - One quantity: the log-probability of an answer, a sum over its ids, shifted by one.
# - SFT raises it; DPO raises a difference; GRPO raises or lowers it, by how much better or worse
#   than its group an answer was. Each can do with a LoRA's few numbers.
# - A clip depends on the sign of the advantage.
# - A model does what is rewarded. Look at what it writes, not at the curve alone.
#
# **Where this is in numgpt:** `objectives/`, a file each, with every derivation; `layers/lora.py`;
# `numgpt tune sft | dpo | grpo`, and the rest of the family: `reward` models, `ppo`, and `kto`,
# which needs no pairs.

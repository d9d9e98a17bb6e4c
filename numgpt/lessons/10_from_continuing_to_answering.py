# %% [markdown]
# # 10 From continuing to answering
#
# A model that has read the internet continues texts. Give it a question, and it may well continue
# with three more questions. What turned GPT into ChatGPT is what came after: examples of answers,
# people's preferences between answers, and rewards. All of it is about one quantity, the
# probability of a whole answer $y$ to a prompt $x$. This lesson derives what each of them does with
# it, and lets a small model learn by each.

# %%
import numpy as np

import numgpt
from numgpt import objectives
from numgpt.lessons import check, figure, solution, yours

rng = np.random.default_rng(0)

# %% [markdown]
# ## log P(y | x)
#
# The probability of an answer is the product of its ids' probabilities, each after the prompt and
# what of the answer stands before it. So its logarithm is a sum:
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
    """logits (T, V), at each of the ids (T,), of which the first are the prompt -> log P(y|x)."""
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
# arXiv:2106.09685) only allows changes of a low rank: $\Delta W = s\,A^\top B^\top$ with $A$
# $(r, I)$ and $B$ $(O, r)$, the rank $r$ perhaps 8, and a scale $s = \alpha/r$. $W$ itself is
# frozen. For a matrix of 576 × 1536 that is 17 thousand numbers instead of 885 thousand, and what
# AdamW keeps shrinks with them.
#
# $$ y = xW + s\,\underbrace{xA^\top}_{u} B^\top $$
#
# The second term is two linear layers one after the other, and you know their backward. $B$ begins
# at 0, so that the tuned model is at first the model as it was; $A$ begins at random, as otherwise
# neither would ever get a gradient.
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
# Here the shipped model, which knows Shakespeare and nothing else, learns three answers by heart,
# with an adapter of rank 4. Its own weights stay untouched.

# %%
model, tokenizer = numgpt.load("shakespeare")
model.add_adapter(numgpt.LoRAConfig(r=4, lora_alpha=8, target_modules="all-linear"), seed=0)
trains = model.num_parameters(trainable=True)
print(f"{trains:,} of {model.num_parameters():,} numbers train")

answers = {"Who art thou?\n": "A model, sir.", "What dost thou?\n": "I guess the next word."}
answers["Art thou alive?\n"] = "No, good sir, I count."


def example(prompt, answer):
    """ids and targets, -100 where the prompt is predicted."""
    x, y = tokenizer.encode(prompt), tokenizer.encode(answer + "\n")
    ids = np.array(x + y)
    targets = ids[1:].copy()
    targets[: len(x) - 1] = -100
    return ids[:-1], targets


optimizer, losses = numgpt.AdamW(model, lr=5e-3, weight_decay=0.0), []
for _ in range(40):
    for prompt, answer in answers.items():
        loss, _ = model.loss_and_grads(*example(prompt, answer))
        losses.append(loss)
        optimizer.step()


def greedy(prompt, count=12):
    ids = tokenizer.encode(prompt)
    options = {"do_sample": False, "generation_config": {}, "eos_token_id": []}
    made = model.generate(ids, max_new_tokens=count, **options)[0]
    return tokenizer.decode(made[len(ids) :])


for prompt in answers:
    print(f"{prompt.strip():18} tuned: {greedy(prompt).split(chr(10))[0]}")
with model.without_adapter():
    as_it_was = greedy("Who art thou?\n").strip().split("\n")[0]
print(f"Who art thou?      as it was: {as_it_was}")

# %% [markdown]
# ## DPO: which of two is better
#
# Writing good answers is hard; saying which of two is better is easy. Let $y^+$ be preferred to
# $y^-$. ChatGPT's way was to train a *reward model* on such pairs first, which gives each answer a
# number $r(x, y)$, and then a model that gets high rewards and stays near the model it began as,
# the *reference*:
#
# $$ \max_\pi\ \mathbb{E}_{y\sim\pi}[r(x, y)] - \beta\,\operatorname{KL}(\pi\,\|\,\pi_\text{ref}) $$
#
# Here $\pi$ is the model (a *policy*, in this field): $\pi(y)$ is short for $P(y|x)$. The KL
# divergence, the mean of $\log\pi(y) - \log\pi_\text{ref}(y)$ over what $\pi$ writes, says how far
# one distribution is from the other, in the units of the loss, *nats*; $\beta$ is what a nat costs.
# The best policy there is can be written down:
# $\pi^*(y|x) \propto \pi_\text{ref}(y|x)\,e^{r(x,y)/\beta}$. Now turn that round (Rafailov et al.
# 2023, arXiv:2305.18290): $r = \beta\log(\pi^*/\pi_\text{ref}) + \beta\log Z(x)$, where $Z$ depends
# on the prompt alone. Assume, with Bradley and Terry, that people prefer $y^+$ with the probability
# $\sigma(r^+ - r^-)$, $\sigma(z) = 1/(1 + e^{-z})$. In the difference $Z$ cancels. So the model is
# its own reward model: DPO skips that one, and trains the model on preferences as a classifier:
#
# $$ \begin{gathered}
#    \Delta = \bigl(\log\pi(y^+) - \log\pi_\text{ref}(y^+)\bigr) \\
#    \qquad - \bigl(\log\pi(y^-) - \log\pi_\text{ref}(y^-)\bigr) \\[4pt]
#    \ell = -\log\sigma(\beta\Delta)
#    \end{gathered} $$
#
# From $\frac{d}{dz}\log\sigma(z) = \sigma(-z)$ follows what each of the two log-probabilities gets.
# A pair that is ranked right by a wide margin has $\sigma(-\beta\Delta) \approx 0$: it teaches no
# more.
#
# **Exercise 10.3.** The mean over pairs, and its gradients.

# %% exercise="10.3"
def dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    """log P of each answer (B,), by the model and by the reference -> loss, dchosen, drejected."""
    # solution
    z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    wrong = 1 / (1 + np.exp(z))  # σ(-z)
    dchosen = -beta * wrong / len(z)
    return np.log1p(np.exp(-z)).mean(), dchosen, -dchosen

# %%
check(dpo)

# %% [markdown]
# Let somebody prefer texts with many o's. We let the model write pairs of continuations of 12 ids,
# call the one with more o's the chosen one, and train on these pairs. `value_and_grads` takes care
# of the way from the log-probabilities to the weights: it calls an objective with the
# log-probability of each target (0 at the prompt, where the target is −100), which returns the
# loss, the gradient by each of them (at the prompt it does not matter), and whatever else is to be
# known.

# %%
PROMPT = "ROMEO:\n"


def sample(count, seed, length=12):
    """Continuations of the prompt: ids and targets (count, T), a mask of the answer, texts."""
    x = tokenizer.encode(PROMPT)
    options = {"do_sample": True, "top_k": None, "generation_config": {}, "eos_token_id": []}
    made = model.generate(
        x, max_new_tokens=length, num_return_sequences=count, seed=seed, **options
    )
    targets = made[:, 1:].copy()
    targets[:, : len(x) - 1] = -100
    texts = [tokenizer.decode(row[len(x) :]) for row in made]
    return made[:, :-1], targets, targets != -100, texts


def reward(text):
    """Of all characters, how many in a hundred are an o."""
    return 100 * text.lower().count("o") / len(text)


def fresh_model():
    model, _ = numgpt.load("shakespeare")
    model.add_adapter(numgpt.LoRAConfig(r=4, lora_alpha=8, target_modules="all-linear"), seed=0)
    return model


model = fresh_model()
before = np.mean([reward(text) for text in sample(64, seed=99)[3]])
ids, targets, _, texts = sample(128, seed=1)
scores = np.array([reward(text) for text in texts]).reshape(-1, 2)
pairs = np.take_along_axis(np.arange(128).reshape(-1, 2), scores.argsort(axis=1), axis=1)
pairs = pairs[scores[:, 0] != scores[:, 1]]
rejected, chosen = pairs.T
with model.without_adapter():
    reference = model.log_probs(ids, targets).sum(axis=1)

optimizer, margins = numgpt.AdamW(model, lr=1e-3, weight_decay=0.0), []
for _ in range(4):
    for some in np.array_split(rng.permutation(len(pairs)), len(pairs) // 8):
        both = np.concatenate([chosen[some], rejected[some]])

        def objective(logps, both=both):
            up, down = np.split(logps.sum(axis=1), 2)
            ref_up, ref_down = np.split(reference[both], 2)
            loss, dup, ddown = dpo(up, down, ref_up, ref_down)
            margin = ((up - ref_up) - (down - ref_down)).mean()
            each = np.concatenate([dup, ddown])[:, None]  # an answer's, for each of its ids
            return loss, np.broadcast_to(each, logps.shape), {"margin": margin}

        _, _, metrics = model.value_and_grads(ids[both], targets[both], objective)
        margins.append(metrics["margin"])
        optimizer.step()
after = np.mean([reward(text) for text in sample(64, seed=99)[3]])
print(f"{len(pairs)} pairs; o's in a hundred characters: {before:.1f} before, {after:.1f} after")
_, axis = figure()
axis.plot(margins)
axis.set_xlabel("step")
axis.set_ylabel("Δ, in nats");

# %% [markdown]
# ## GRPO: rewards for what it writes itself
#
# Pairs that were written once grow stale, as the model changes. *Reinforcement learning* lets the
# model write, rewards what it has written, and makes what was rewarded likelier. As
# $\nabla\pi = \pi\,\nabla\log\pi$, the gradient of an expected reward is
#
# $$ \nabla\,\mathbb{E}_{y\sim\pi}[r(y)]
#    = \mathbb{E}_{y\sim\pi}\bigl[(r(y) - b)\,\nabla\log\pi(y)\bigr] $$
#
# for any $b$ that does not depend on $y$:
# $\mathbb{E}[\nabla\log\pi] = \nabla\sum_y\pi(y) = \nabla 1 = 0$. A good $b$ takes away noise: what
# counts is whether an answer was better than could be expected. PPO (as in the first ChatGPT)
# trains one more model, to predict the reward. GRPO (Shao et al. 2024, arXiv:2402.03300), which
# made DeepSeek's models reason, needs none: let the model answer the *same* prompt several times,
# and take the mean of that group. It then divides by the group's standard deviation, so that
# rewards of any scale will do:
#
# $$ A_i = \frac{r_i - \operatorname{mean}(r)}{\operatorname{std}(r) + 10^{-4}} $$
#
# **Exercise 10.4.** The standard deviation divides by $n - 1$, as in the common implementations. A
# group in which all got the same has nothing to teach: its advantages are 0.

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
# ## The clip
#
# Writing is slow, so one would like to take several steps on what was written. After the first, the
# model is no longer the one that wrote it; the ratio $\rho = \pi(y_t)/\pi_\text{old}(y_t)$ says by
# how much, and weighs each term. PPO (Schulman et al. 2017, arXiv:1707.06347) stops it from going
# too far: with $\varepsilon = 0.2$,
#
# $$ \ell = -\min\bigl(\rho A,\ \operatorname{clip}(\rho, 1-\varepsilon, 1+\varepsilon)\,A\bigr) $$
#
# Read it by the sign of $A$. Good ($A > 0$): push up, but no further than $\rho = 1+\varepsilon$;
# there the gradient is 0. Bad ($A < 0$): push down, no further than $1-\varepsilon$. In both cases
# the **other** side is not clipped: where a good answer has become *less* likely by mistake,
# $\rho < 1 - \varepsilon$, it must be allowed to come back. Since
# $\rho = e^{\log\pi - \log\pi_\text{old}}$, its derivative with respect to $\log\pi$ is $\rho$. At
# $\rho = 1$ the gradient of $-\rho A$ is $-A\,\nabla\log\pi$: the one above. Every id of an answer
# gets its answer's $A$.
#
# The function below forgets something in that paragraph. Trained with it, the curves look fine.
# **Find the fault.** (The loss is right.)
#
# **Exercise 10.5.** Mend the gradient.

# %% exercise="10.5"
def policy_loss(logp, old_logp, advantages, epsilon=0.2):
    """logp, old_logp, advantages (N,), of each id -> loss, a sum; dlogp (N,)."""
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
# All together: write 16 continuations, reward each, take two steps on them, and again.

# %%
model = fresh_model()
optimizer, curve = numgpt.AdamW(model, lr=1e-3, weight_decay=0.0), []
for rollout in range(25):
    ids, targets, mask, texts = sample(16, seed=1000 + rollout)
    rewards = np.array([reward(text) for text in texts])
    curve.append(rewards.mean())
    advantages = np.broadcast_to(advantages_of_groups(rewards, 16)[:, None], mask.shape)
    old = model.log_probs(ids, targets)
    for _ in range(2):

        def objective(logps, old=old, mask=mask, advantages=advantages):
            loss, dlogp = policy_loss(logps[mask], old[mask], advantages[mask])
            dlogps = np.zeros_like(logps)
            dlogps[mask] = dlogp / mask.sum()
            return loss / mask.sum(), dlogps, {}

        model.value_and_grads(ids, targets, objective)
        optimizer.step(grad_clip=1.0)
with model.without_adapter():
    reference = model.log_probs(ids, targets)[mask]
drift = (model.log_probs(ids, targets)[mask] - reference).sum() / 16
_, axis = figure()
axis.plot(curve)
axis.set_xlabel("rollout")
axis.set_ylabel("o's in a hundred characters")
print(
    f"from {curve[0]:.1f} to {np.mean(curve[-5:]):.1f}; {drift:.0f} nats from the model as it was"
)
for text in sample(4, seed=5)[3]:
    print(repr(text))

# %% [markdown]
# Look at what it writes now, and you see the other half of the story. It was rewarded for o's, and
# has found that a third of the letters of ROMEO are o's. Nobody meant that, and whether it still
# speaks English was not asked. That is why one mostly pays for leaving the reference, by
# $\beta\operatorname{KL}$ as in the formula for DPO (the loop above left it out; the last number
# printed is an estimate of that KL). And it is why finding a reward that says what is meant is the
# hard part.
#
# numgpt's own objectives give the same numbers:

# %%
up, down, ref_up, ref_down = rng.normal(size=(4, 6)) - 5
theirs = objectives.dpo(up, down, ref_up, ref_down, beta=0.3)
ours = dpo(up, down, ref_up, ref_down, beta=0.3)
print("dpo ", ours[0] - theirs[0], float(abs(ours[1] - theirs[1][0]).max()))
logp, old = rng.normal(size=(2, 4, 3)) * 0.3 - 2
advantages = objectives.group_advantages(rng.normal(size=4), 4)
loss, dlogp, _ = objectives.grpo(logp, old, advantages, np.ones((4, 3), bool))
ours = policy_loss(logp.ravel(), old.ravel(), advantages.repeat(3))
print("grpo", float(ours[0] / 12 - loss), float(abs(ours[1] / 12 - dlogp.ravel()).max()))

# %% [markdown]
# ## What to take along
#
# - One quantity: the log-probability of an answer, a sum over its ids, shifted by one.
# - Tuning raises it; DPO raises a difference; GRPO raises it by how good the answer was.
# - A clip depends on the sign of the advantage.
# - A model does what is rewarded. Look at what it writes, not at the curve alone.
#
# **Where this is in numgpt:** `objectives/`, a file each, with every derivation; `layers/lora.py`;
# `numgpt tune sft | dpo | grpo`, and the rest of the family: `reward` models, `ppo`, and `kto`,
# which needs no pairs.

"""WHAT IS MINIMISED beyond next tokens: preferences, rewards, policies. One file, one objective.

Each is a pure function of small arrays, the log-probabilities or scores that a model has given, and
returns a loss, its derivative by each of them, and metrics:

    loss, dlogps, metrics = objective(logps, …)

so that `model.value_and_grads(ids, targets, objective)` goes on backwards from there. The notation:

    x, y            a prompt and a completion of it;  y⁺, y⁻  the chosen and the rejected one
    log π(y|x)      Σ_t log π(y_t | x, y_<t), over the completion's tokens, by the policy
    log π_ref       … by the model that it began as, the reference
    σ(a)            1 / (1 + e⁻ᵃ),  with  d log σ(a)/da = σ(-a),  σ'(a) = σ(a) σ(-a)

Sums, not means: a loss is Σ over pairs, completions or tokens, divided by `count`, how many of them
the whole step has (by default, those of the call). So cutting a step into micro-batches, over
threads or processes changes nothing, and metrics of the parts add up as the losses do.
"""

from numgpt.objectives.dpo import dpo
from numgpt.objectives.grpo import group_advantages, grpo
from numgpt.objectives.kl import kl
from numgpt.objectives.kto import kto, mismatched_kl
from numgpt.objectives.ppo import gae, ppo, token_rewards, value, whitened
from numgpt.objectives.reinforce import leave_one_out, reinforce, rloo
from numgpt.objectives.reward import reward

__all__ = [
    "dpo",
    "gae",
    "group_advantages",
    "grpo",
    "kl",
    "kto",
    "leave_one_out",
    "mismatched_kl",
    "ppo",
    "reinforce",
    "reward",
    "rloo",
    "token_rewards",
    "value",
    "whitened",
]

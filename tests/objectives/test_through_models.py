"""Objectives through a model: the gradient by all parameters, however the step is cut."""

import numpy as np
import pytest
from models.references import small_model
from models.test_gradients import along, cut, numerical

from numgpt import objectives

FAMILIES = ["default", "llama_grouped"]
PAIRS, TIME = 4, 7


def drawn(model, rows):
    """ids, and targets of completions of uneven lengths behind prompts of two."""
    rng = np.random.default_rng(0)
    ids = rng.integers(model.config.vocab_size, size=(rows, TIME + 1))
    lengths = rng.integers(1, TIME - 1, rows)
    place = np.arange(TIME)
    counts = (place >= 2) & (place < 2 + lengths[:, None])
    return ids[:, :-1], np.where(counts, ids[:, 1:], -100), counts


def preferences(model, rows=None):
    """A DPO of pairs: chosen ones first in each batch."""
    ids, targets, counts = drawn(model, 2 * PAIRS)
    rng = np.random.default_rng(1)
    ref, lengths = rng.normal(-12, 2, 2 * PAIRS), counts.sum(axis=1)

    def batch(pairs):
        chosen, rejected = np.array(pairs), PAIRS + np.array(pairs)
        both = np.concatenate([chosen, rejected])

        def objective(logp):
            s = logp.sum(axis=1)
            loss, by, metrics = objectives.dpo(
                s[: len(pairs)], s[len(pairs) :], ref[chosen], ref[rejected], 0.3, "ipo",
                lengths=(lengths[chosen], lengths[rejected]), count=PAIRS,
            )  # fmt: skip
            return loss, np.concatenate(by)[:, None] * np.ones_like(logp), metrics

        return ids[both], targets[both], objective

    return batch, PAIRS, {}


def policy(model):
    """GRPO with a KL term, an entropy bonus and a temperature."""
    ids, targets, counts = drawn(model, 2 * PAIRS)
    rng = np.random.default_rng(1)
    old, ref = rng.normal(-3, 0.3, (2, *ids.shape))
    advantages, tokens, bonus = rng.normal(size=2 * PAIRS), counts.sum(), 0.05

    def batch(rows):
        rows = np.array(rows)

        def objective(logp, entropies):
            loss, dlogps, metrics = objectives.grpo(
                logp, old[rows], advantages[rows], counts[rows], ref[rows], beta=0.1, count=tokens
            )
            loss -= bonus * entropies.sum() / tokens  # 0 where no target counts
            return loss, (dlogps, np.full_like(entropies, -bonus / tokens)), metrics

        return ids[rows], targets[rows], objective

    return batch, 2 * PAIRS, {"temperature": 0.7, "entropy": True}


@pytest.mark.parametrize("kind", [preferences, policy])
@pytest.mark.parametrize("name", FAMILIES)
def test_cutting_a_step_changes_nothing(name, kind, monkeypatch):
    """Micro-batches and threads, to 1e-12 in float64."""
    model = small_model(name, np.float64)
    batch, count, options = kind(model)
    loss, gradients, metrics = model.value_and_grads(*batch(range(count)), **options)
    whole = gradients.flat.copy()
    for threads in (1, 2, 3):
        cut(threads, monkeypatch)
        for edges in ([count], [1, count], [count - 1, count], list(range(1, count + 1))):
            gradients, total, summed = None, 0.0, dict.fromkeys(metrics, 0.0)
            for start, stop in zip([0, *edges], edges, strict=False):
                part, gradients, told = model.value_and_grads(
                    *batch(range(start, stop)), add_to=gradients, **options
                )
                total += part
                summed = {n: summed[n] + value for n, value in told.items()}
            assert total == pytest.approx(loss, rel=1e-12)
            assert np.abs(gradients.flat - whole).max() < 1e-12 * np.abs(whole).max()
            if kind is preferences:
                assert summed == pytest.approx(metrics, rel=1e-12)


@pytest.mark.parametrize("kind", [preferences, policy])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_is_the_numerical_derivative(name, kind):
    model = small_model(name, np.float64)
    batch, count, options = kind(model)
    whole = batch(range(count))
    _, gradients, _ = model.value_and_grads(*whole, **options)

    def value():
        return model.value_and_grads(*whole, **options)[0]

    slope, direction = numerical(model, value)
    assert slope == pytest.approx(along(gradients, direction), rel=1e-6)


def test_what_an_objective_of_entropies_must_give():
    model = small_model("default")
    ids, targets, _ = drawn(model, 2)
    for told, message in (
        ((0.0, np.zeros((2, TIME)), {}), r"expected \(dlogp, dentropies\)"),
        ((0.0, (np.zeros((2, TIME)), np.zeros(2)), {}), r"dentropies has shape \(2,\), logp"),
        ((0.0, (np.zeros(2), np.zeros((2, TIME))), {}), r"dlogp has shape \(2,\), logp \(2, 7\)"),
        (0.5, r"returned 0\.5: expected loss, \(dlogp, dentropies\), metrics"),
    ):
        with pytest.raises(ValueError, match=message):
            model.value_and_grads(ids, targets, lambda logp, h, told=told: told, entropy=True)

"""Every objective: numerical derivatives, autograd on the formula, and that cutting changes
nothing."""

import numpy as np
import pytest
from objectives.cases import CASES
from support import GOLDENS

from numgpt import objectives


def drawn(name, seed=0):
    return CASES[name].arrays(np.random.default_rng([seed, *name.encode()]))


def by_autograd(name, seed=0) -> dict[str, np.ndarray]:
    """Loss and gradients of the formula in PyTorch."""
    import torch

    case, arrays = CASES[name], drawn(name, seed)
    tensors = {n: torch.tensor(a.astype(float)) for n, a in arrays.items()}
    for n in case.by:
        tensors[n].requires_grad_(True)
    loss = case.formula(torch, **tensors)
    loss.backward()
    return {"loss": np.array(loss.item())} | {n: tensors[n].grad.numpy() for n in case.by}


def record() -> dict[str, np.ndarray]:
    """For goldens/record.py."""
    return {f"{name}/{key}": value for name in CASES for key, value in by_autograd(name).items()}


def close(actual, expected):
    assert np.abs(actual - expected).max() <= 1e-10 * max(1, np.abs(expected).max())


def same(name, expected, seed=0):
    loss, gradients, _ = CASES[name].run(drawn(name, seed))
    close(loss, expected["loss"])
    for n, gradient in gradients.items():
        close(gradient, expected[n])


@pytest.mark.parametrize("name", CASES)
def test_equals_recorded_autograd(name):
    with np.load(GOLDENS / "objectives.npz") as goldens:
        prefix = f"{name}/"
        same(name, {k[len(prefix) :]: goldens[k] for k in goldens if k.startswith(prefix)})


@pytest.mark.live("torch")
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", CASES)
def test_equals_autograd(name, seed):
    same(name, by_autograd(name, seed), seed)


@pytest.mark.parametrize("name", CASES)
def test_numerical_derivatives(name):
    """Of each number that counts, by central differences in float64."""
    case, arrays = CASES[name], drawn(name)
    _, gradients, _ = case.run(arrays)
    step, compared = 1e-6, 0
    for n, gradient in gradients.items():
        assert gradient.shape == arrays[n].shape
        for place in np.ndindex(gradient.shape):
            sides = []
            for sign in (1, -1):
                moved = arrays[n].copy()
                moved[place] += sign * step
                sides.append(case.run(arrays | {n: moved})[0])
            numerical = (sides[0] - sides[1]) / (2 * step)
            assert gradient[place] == pytest.approx(numerical, rel=1e-5, abs=1e-8), (n, place)
            compared += gradient[place] != 0
    assert compared


@pytest.mark.parametrize("name", CASES)
def test_cutting_a_step_changes_nothing(name):
    """… into parts of any size: the losses, gradients and metrics of the parts are those of all."""
    case, arrays = CASES[name], drawn(name)
    whole = case.run(arrays)
    options = {"count": case.count(arrays)}
    if "level" in getattr(case.ours, "keywords", {}):  # metrics of tokens, whatever the loss counts
        options["tokens"] = arrays["mask"].sum()
    size = len(next(iter(arrays.values())))
    for edges in ([1, 2], [3], [size - 1], list(range(1, size))):
        parts = [
            case.run({n: a[piece] for n, a in arrays.items()}, **options)
            for piece in (slice(*pair) for pair in zip([0, *edges], [*edges, size], strict=True))
        ]
        assert sum(part[0] for part in parts) == pytest.approx(whole[0], rel=1e-12, abs=1e-12)
        for n, gradient in whole[1].items():
            joined = np.concatenate([part[1][n] for part in parts])
            assert np.abs(joined - gradient).max() <= 1e-12
        for n, metric in whole[2].items():
            assert sum(part[2][n] for part in parts) == pytest.approx(metric, abs=1e-12), n


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "mask" in drawn(n)])
def test_what_is_masked_does_not_matter(name):
    case, arrays = CASES[name], drawn(name)
    loss, gradients, metrics = case.run(arrays)
    masked = arrays["mask"] == 0
    for garbage in (np.nan, np.inf, -np.inf, 1e30):
        spoilt = {
            n: np.where(masked, garbage, a) if a.shape == masked.shape and n != "mask" else a
            for n, a in arrays.items()
        }
        other_loss, other_gradients, other_metrics = case.run(spoilt)
        assert (other_loss, other_metrics) == (loss, metrics)
        for n, gradient in gradients.items():
            np.testing.assert_array_equal(other_gradients[n], gradient)
            assert (gradient[masked] == 0).all()
    nothing = case.run(arrays | {"mask": np.zeros_like(arrays["mask"])})
    if name != "rloo":  # where a completion without tokens has the ratio 1, and a loss of -A
        assert nothing[0] == 0
    assert all((gradient == 0).all() for gradient in nothing[1].values())


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32_and_large_numbers_overflow_nothing(name):
    case = CASES[name]
    arrays = {n: a.astype(np.float32) if a.dtype == float else a for n, a in drawn(name).items()}
    _, gradients, _ = case.run(arrays)
    assert {gradient.dtype for gradient in gradients.values()} == {np.dtype(np.float32)}
    if case.counts != "pairs":
        return  # a ratio may be any number
    for scale in (1e3, -1e3):
        far = {n: a * scale if "logps" in n and n in case.by else a for n, a in drawn(name).items()}
        if name == "orpo" and scale < 0:
            continue  # a probability above 1
        loss, gradients, _ = case.run(far)
        assert np.isfinite(loss)
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())


# --- what no derivative shows ---


def test_the_clip_holds_on_one_side_only():
    """Outside it, what would bring the policy back still has a gradient."""
    ratios, advantages = np.array([1.5, 1.5, 0.5, 0.5]), np.array([1.0, -1.0, 1.0, -1.0])
    logps = np.log(ratios)[:, None]
    _, dlogps, metrics = objectives.grpo(logps, 0 * logps, advantages, np.ones((4, 1)))
    np.testing.assert_allclose(dlogps[:, 0], np.array([0, 1.5, -0.5, 0]) / 4)
    assert metrics["clip_ratio/high_mean"] == metrics["clip_ratio/low_mean"] == 0.25


def test_on_policy_every_kind_is_reinforce():
    rng = np.random.default_rng(0)
    logps, advantages, mask = -rng.uniform(1, 2, (4, 3)), rng.normal(size=4), np.ones((4, 3))
    _, expected, _ = objectives.reinforce(logps, advantages, mask)
    of_kinds = {
        "dapo": 3 * objectives.grpo(logps, logps, advantages, mask)[1],
        "grpo": 3 * objectives.grpo(logps, logps, advantages, mask, loss_type="grpo")[1],
        "ppo": 3 * objectives.ppo(logps, logps, advantages[:, None] * mask, mask)[1],
        "rloo": objectives.rloo(logps, logps, advantages, mask)[1],
    }
    for name, dlogps in of_kinds.items():
        np.testing.assert_allclose(dlogps, expected, err_msg=name)


def test_which_estimate_of_the_kl_is_unbiased():
    """On a space of five tokens, by summing over all: kl.py's claims."""
    rng = np.random.default_rng(0)
    z, z_ref = rng.normal(size=(2, 5))
    log_softmax = lambda z: z - np.log(np.exp(z).sum())  # noqa: E731
    log_p, log_ref = log_softmax(z), log_softmax(z_ref)
    p, ref = np.exp(log_p), np.exp(log_ref)
    by_z = np.eye(5) - p  # ∂ log p_v / ∂ z, a row each

    def gradient_of(function, step=1e-6):
        moves = step * np.eye(5)
        return np.array([(function(z + m) - function(z - m)) / (2 * step) for m in moves])

    def reverse(z):
        log_p = log_softmax(z)
        return np.exp(log_p) @ (log_p - log_ref)

    def forward(z):
        return ref @ (log_ref - log_softmax(z))

    (k1, dk1), (k3, dk3) = (objectives.kl(log_p, log_ref, name) for name in ("k1", "k3"))
    assert [p @ k1, p @ k3] == pytest.approx([reverse(z)] * 2)
    np.testing.assert_allclose((p * dk1) @ by_z, 0, atol=1e-12)  # as a loss: nothing
    np.testing.assert_allclose((p * dk3) @ by_z, gradient_of(forward), atol=1e-8)
    np.testing.assert_allclose((p * (k3 + dk3)) @ by_z, gradient_of(reverse), atol=1e-8)  # ρ·k3
    np.testing.assert_allclose((p * k1) @ by_z, gradient_of(reverse), atol=1e-8)  # in the reward
    assert np.abs(gradient_of(forward) - gradient_of(reverse)).max() > 0.05


def test_group_advantages():
    rewards = np.array([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0])
    of_group = objectives.group_advantages(rewards, 4)
    spread = np.std([1, 2, 3, 6], ddof=1)
    np.testing.assert_allclose(of_group[:4], (rewards[:4] - 3) / (spread + 1e-4))
    assert (of_group[4:] == 0).all()
    of_batch = objectives.group_advantages(rewards, 4, "batch")
    np.testing.assert_allclose(of_batch[:4], (rewards[:4] - 3) / (rewards.std(ddof=1) + 1e-4))
    others = objectives.leave_one_out(rewards, 4)
    expected = [r - (rewards[:4].sum() - r) / 3 for r in rewards[:4]]
    np.testing.assert_allclose(others[:4], expected)
    rewards[[1, 4, 5, 6, 7]] = np.nan  # what no reward applies to
    without = objectives.group_advantages(rewards, 4, "none")
    np.testing.assert_allclose(without, [1 - 10 / 3, 0, 3 - 10 / 3, 6 - 10 / 3, 0, 0, 0, 0])
    np.testing.assert_allclose(objectives.leave_one_out(rewards, 4)[:4], [-3.5, 0, -0.5, 4])
    assert (objectives.group_advantages(np.full(4, np.nan), 2, "batch") == 0).all()


def test_gae_by_hand():
    """γ = ½, λ = ½; the second completion has two tokens."""
    rewards = np.array([[1.0, 0.0, 2.0], [0.0, 4.0, 9.0]])
    values = np.array([[2.0, 4.0, 8.0], [1.0, 2.0, 9.0]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    advantages, returns = objectives.gae(rewards, values, mask, gamma=0.5, lam=0.5)
    # δ: 1 + ½·4 - 2, 0 + ½·8 - 4, 2 - 8  and  0 + ½·2 - 1, 4 - 2
    np.testing.assert_allclose(advantages, [[1 + 0.25 * -1.5, -1.5, -6], [0.5, 2, 0]])
    np.testing.assert_allclose(returns, [[2.625, 2.5, 2], [1.5, 4, 0]])
    rewards_alone = objectives.gae(rewards, values, mask, gamma=1.0, lam=1.0)[1]
    np.testing.assert_allclose(rewards_alone, [[3, 2, 2], [4, 4, 0]])
    next_alone = objectives.gae(rewards, values, mask, gamma=1.0, lam=0.0)[0]
    np.testing.assert_allclose(next_alone, [[3, 4, -6], [1, 2, 0]])


def test_advantages_are_whitened_over_the_whole_step():
    rng = np.random.default_rng(0)
    advantages, mask = rng.normal(3, 2, (4, 5)), rng.integers(0, 2, (4, 5))
    white = objectives.whitened(advantages, mask)
    counted = white[mask == 1]
    assert counted.mean() == pytest.approx(0, abs=1e-12)
    assert counted.var(ddof=1) == pytest.approx(1)
    assert (white[mask == 0] == 0).all()
    kept = advantages * mask
    sums = mask.sum(), kept.sum(), (kept**2).sum()
    for row in range(4):
        part = objectives.whitened(advantages[row : row + 1], mask[row : row + 1], sums)
        np.testing.assert_allclose(part[0], white[row], atol=1e-12)


def test_what_does_not_count_within_a_completion_is_passed_over():
    """As what a tool wrote, between two parts of an answer."""
    rewards, values = np.array([[0.0, 0, 7, 1]]), np.array([[0.5, 0.25, 9, 2]])
    mask = np.array([[1, 1, 0, 1]])
    advantages, returns = objectives.gae(rewards, values, mask, gamma=0.5, lam=0.5)
    without = mask[0] == 1
    expected = objectives.gae(rewards[:, without], values[:, without], mask[:, without], 0.5, 0.5)
    np.testing.assert_array_equal(advantages[:, without], expected[0])
    np.testing.assert_array_equal(returns[:, without], expected[1])
    assert advantages[0, 2] == returns[0, 2] == 0


def test_what_a_model_knows_by_heart_is_no_nan():
    """A mean log-probability of 0, as float32 has it, or a little above."""
    for value in (0.0, 1e-7, -1e-9):
        logps = np.array([value, -2.0], np.float32), np.array([-3.0, -1.0], np.float32)
        lengths = np.array([1, 4]), np.array([2, 3])
        loss, by, _ = objectives.dpo(*logps, loss_type="orpo", lengths=lengths)
        assert np.isfinite(loss)
        assert all(np.isfinite(d).all() for d in by)


def test_an_advantage_of_0_is_no_nan_however_far_the_policy_went():
    logps, old = np.full((1, 9), -1.0), np.full((1, 9), -200.0)
    loss, dlogps, _ = objectives.rloo(logps, old, np.zeros(1), np.ones((1, 9)))
    assert loss == 0
    assert (dlogps == 0).all()


def test_the_kl_is_told_wherever_there_is_a_reference():
    assert "kl" not in objectives.grpo(BT, BT, B2, ONES)[2]
    told = objectives.grpo(BT, BT, B2, ONES, BT - 1)[2]["kl"]
    assert told == pytest.approx(np.exp(-1) + 1 - 1)


def test_the_reward_of_a_token():
    logps, ref = np.array([[-1.0, -3.0, 0.0]]), np.array([[-2.0, -1.0, 0.0]])
    for length, expected in ((3, [-0.5, 1, 4]), (2, [-0.5, 5, 0]), (1, [3.5, 0, 0]), (0, [0] * 3)):
        mask = np.arange(3) < np.array([[length]])
        rewards = objectives.token_rewards(np.array([4.0]), logps, ref, mask, 0.5)
        np.testing.assert_allclose(rewards, [expected])


def test_z_of_parts_adds_up():
    rng = np.random.default_rng(0)
    logps, ref = -rng.uniform(1, 2, 6), -rng.uniform(2, 3, 6)
    whole = objectives.mismatched_kl(logps, ref)
    parts = [objectives.mismatched_kl(logps[p], ref[p], 6) for p in (slice(2), slice(2, 6))]
    assert sum(parts) == pytest.approx(whole)
    assert objectives.mismatched_kl(ref, logps) == 0  # never below


B2, BT = np.array([-1.0, -2.0]), np.full((2, 3), -1.0)
ONES = np.ones((2, 3))
BAD = [
    (lambda: objectives.dpo(B2, B2, B2, B2, loss_type="ppo"), "loss_type='ppo': expected"),
    (lambda: objectives.dpo(B2, B2), "loss_type='sigmoid' needs the reference's log-prob"),
    (lambda: objectives.dpo(B2, B2[:1], B2, B2), r"rejected_logps has shape \(1,\), chosen_logps"),
    (lambda: objectives.dpo(B2, B2, B2, np.array([np.nan, 0])), "ref_rejected_logps holds nan"),
    (lambda: objectives.dpo([-1.0], B2), "chosen_logps is of list: pass a NumPy array"),
    (lambda: objectives.dpo(B2, B2, B2, B2, beta=0), "beta=0: expected a number above 0"),
    (lambda: objectives.dpo(B2, B2, B2, B2, label_smoothing=0.5), "label_smoothing=0.5: expected"),
    (
        lambda: objectives.dpo(B2, B2, B2, B2, loss_type="hinge", label_smoothing=0.1),
        "or below 0.5 with robust or sigmoid or simpo",
    ),
    (lambda: objectives.dpo(B2, B2, loss_type="simpo"), "needs the completions' lengths"),
    (
        lambda: objectives.dpo(B2, B2, loss_type="orpo", lengths=(np.array([1, 0]),) * 2),
        "those that have no tokens are no completions",
    ),
    (lambda: objectives.kto(B2, B2, np.array([True]), 0.0), r"desirable has shape \(1,\)"),
    (lambda: objectives.kto(B2, B2, B2 > 0, -1.0), "z=-1.0: expected 0 or more"),
    (lambda: objectives.grpo(BT, BT, B2, ONES, loss_type="x"), "loss_type='x': expected dapo or"),
    (lambda: objectives.grpo(BT, BT, B2, ONES, level="x"), "level='x': expected token or"),
    (lambda: objectives.grpo(BT, BT, B2, ONES, beta=0.1), "beta=0.1 needs ref_logps"),
    (lambda: objectives.grpo(BT, BT, B2[:1], ONES), r"advantages have shape \(1,\): expected \(2,"),
    (lambda: objectives.grpo(BT, BT, B2, ONES[:1]), r"advantages have shape \(2,\): expected \(1,"),
    (lambda: objectives.grpo(BT, BT, B2, ONES, loss_type="dr_grpo"), "dr_grpo' needs max_length"),
    (lambda: objectives.grpo(BT, BT, B2, ONES, epsilon=0.0), "epsilon=0.0: expected a number"),
    (lambda: objectives.grpo(BT * np.nan, BT, B2, ONES), "logps holds nan: expected numbers"),
    (lambda: objectives.group_advantages(B2, 1), "group_size=1 for 2 rewards: expected 2 or more"),
    (lambda: objectives.group_advantages(np.zeros(5), 2), "group_size=2 for 5 rewards"),
    (lambda: objectives.group_advantages(B2, 2, "all"), "scale='all': expected group or batch"),
    (lambda: objectives.kl(B2, B2, "k2"), "estimator='k2': expected k1 or k3"),
    (lambda: objectives.reinforce(BT, B2[:1], ONES), r"advantages have shape \(1,\)"),
    (lambda: objectives.ppo(BT, BT, BT[0], ONES), r"advantages has shape \(3,\), mask \(2, 3\)"),
    (lambda: objectives.ppo(BT, BT[:1], BT, ONES), r"old_logps has shape \(1, 3\), mask \(2, 3\)"),
    (lambda: objectives.grpo(BT, BT, B2 * np.nan, ONES), "advantages holds nan: expected numbers"),
    (lambda: objectives.rloo(BT, BT, B2[:1], ONES), r"advantages have shape \(1,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_ppo_is_what_trl_computed_in_its_own_loop():
    """goldens/record_ppo.py says how; in float32."""
    with np.load(GOLDENS / "ppo.npz") as recorded:
        of = dict(recorded.items())

    def near(actual, expected):
        assert np.abs(actual - expected).max() <= 2e-6 * max(1, np.abs(expected).max())

    rolled = {name: of[f"0/{name}"] for name in ("logprobs", "ref_logprobs", "values", "scores")}
    counts, valued = ~of["0/padding_mask"], ~of["0/padding_mask_p1"]
    paid = objectives.token_rewards(
        np.zeros(4, np.float32), rolled["logprobs"], rolled["ref_logprobs"], counts, 0.2
    )
    rewards = of["0/rewards"]
    assert (rewards != paid).sum() == 4  # trl gives the score to the place after the end
    near(np.where(rewards == paid, 0, rewards - paid).sum(axis=1), rolled["scores"])
    advantages, returns = objectives.gae(rewards, rolled["values"], valued, 0.9, 0.8)
    near(returns * valued, of["0/returns"] * valued)
    near(objectives.whitened(advantages, counts), of["0/advantages"])
    for epoch in (0, 1):
        order = of[f"{epoch}/order"]
        new, old = of[f"{epoch}/new_logprobs"], rolled["logprobs"][order]
        loss, dlogps, _ = objectives.ppo(new, old, of["0/advantages"][order], counts[order])
        near(loss, of[f"{epoch}/pg_loss"])
        near(dlogps, of[f"{epoch}/dlogps"])
        values = of[f"{epoch}/vpred"], rolled["values"][order], of["0/returns"][order]
        value_loss, dvalues, told = objectives.value(*values, valued[order], cliprange=0.1)
        near(value_loss, of[f"{epoch}/vf_loss"])
        near(0.1 * dvalues, of[f"{epoch}/dvalues"])
        near(loss + 0.1 * value_loss, of[f"{epoch}/loss"])
    assert told["clipfrac_value"] > 0  # in the second the policy and the values have moved
    assert np.abs(of["1/new_logprobs"] - rolled["logprobs"][of["1/order"]]).max() > 0.2

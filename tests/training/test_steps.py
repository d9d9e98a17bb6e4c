"""Steps: totals of all batches first, then their gradients, whatever the task; memory; records."""

import gc
import tracemalloc

import numpy as np
import pytest
from models.references import small_model
from models.test_gradients import cut

from numgpt import GPT, AdamW, GPTConfig
from numgpt.data.batch import Batch
from numgpt.runtime import scratch
from numgpt.training import Note, Progress, Report, Sample, Saved, records
from numgpt.training.step import add_sums, step


class Centred:
    """Σ_n (logp_n - mean of all logp)² / n: what each batch minimises depends on all of them, as
    KTO's z or whitened advantages do."""

    def __init__(self):
        self.calls = []

    def totals(self, model, batches):
        self.calls.append("totals")
        sums = {}
        for batch in batches:
            logp = model.log_probs(batch.ids, batch.targets)
            sums = add_sums(sums, {"logp": logp.sum(), "n": logp.size})
        return sums

    def gradients(self, model, batch, totals, add_to):
        self.calls.append("gradients")
        mean, n = totals["logp"] / totals["n"], totals["n"]

        def objective(logp):
            return ((logp - mean) ** 2).sum() / n, 2 * (logp - mean) / n, {}

        loss, gradients, _ = model.value_and_grads(
            batch.ids, batch.targets, objective, add_to=add_to
        )
        return {"loss": loss, "tokens": batch.tokens}, gradients


def test_cutting_a_step_changes_nothing_even_where_all_batches_must_be_known_first():
    ids = np.random.default_rng(0).integers(37, size=(6, 9))
    found = []
    for sizes in ((6,), (2, 4), (1, 2, 3)):
        model = small_model("default", dtype=np.float64)
        optimizer, task = AdamW(model), Centred()
        parts = np.split(ids, np.cumsum(sizes)[:-1])
        batches = [Batch(part[:, :-1], part[:, 1:], part[:, 1:].size) for part in parts]
        sums, norm = step(model, batches, task, optimizer, 1e-3, grad_clip=0.5)
        assert task.calls == ["totals"] + ["gradients"] * len(batches)
        assert (optimizer.lr, optimizer.steps, sums["tokens"]) == (1e-3, 1, 48)
        found.append((sums["loss"], norm, model.parameters.flat.copy()))
    for loss, norm, weights in found[1:]:
        assert (loss, norm) == pytest.approx(found[0][:2], rel=1e-12)
        np.testing.assert_allclose(weights, found[0][2], rtol=1e-12, atol=1e-12)


def test_gradients_are_clipped_by_the_norm_that_is_given_back():
    batch = Batch(np.array([[1, 2, 3]]), np.array([[2, 3, 4]]), 3)
    norms, moved = [], []
    for clip in (0, 1e-3):
        model = small_model("default", dtype=np.float64)
        optimizer = AdamW(model)
        norms.append(step(model, [batch], Centred(), optimizer, 1e-2, clip)[1])
        moved.append(np.linalg.norm(optimizer.m) / (1 - optimizer.betas[0]))
    assert norms[0] == pytest.approx(norms[1]) == pytest.approx(moved[0])
    assert moved[1] == pytest.approx(1e-3, rel=1e-2)


def test_memory_stays_flat_over_many_steps(monkeypatch, one_thread):
    cut(2, monkeypatch)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=65)
    model = GPT(config)
    optimizer = AdamW(model)
    rng = np.random.default_rng(0)

    def steps(rounds: int) -> None:
        for _ in range(rounds):
            for time in rng.permutation(64) + 1:  # every length, as a last batch or evaluation has
                ids, targets = rng.integers(65, size=(2, 4, time))
                model.loss_and_grads(ids, targets, rng)
                optimizer.step(grad_clip=1.0)
        gc.collect()

    tracemalloc.start()
    try:
        steps(1)  # every size of buffer has been seen
        pool = scratch._pool
        before = tracemalloc.get_traced_memory()[0], pool.used_bytes + pool.idle_bytes
        steps(2)
        after = tracemalloc.get_traced_memory()[0], pool.used_bytes + pool.idle_bytes
    finally:
        tracemalloc.stop()
    # A leaked activation of a step would be 128 times some 10 kB.
    assert after[0] - before[0] < 200_000
    assert after[1] - before[1] < 200_000


def report(step, val_loss=None):
    return Report(step, 20, 2.5, val_loss, 1e-3, 0.7, 1234.5, 3723.0, {"mean_token_accuracy": 0.5})


def test_each_record_is_a_line():
    assert str(report(5)).startswith("step  5/20  loss 2.5000  accuracy 0.500  ")
    assert str(report(5)).endswith("1,234 tokens/s  ETA 1:02:03")
    assert "val 3.0000" in str(report(5, 3.0))
    assert report(5).logged()["mean_token_accuracy"] == 0.5
    assert str(Note("read")) == "read"
    assert str(Saved(4)) == "step 4 is saved"
    assert str(Sample(4, 3, "a", "b")) == "--- step 4 (the best so far: 3), after 'a' ---\nb\n---"
    assert str(Sample(4, 0, "a", "b")).startswith("--- step 4, after")


@pytest.mark.parametrize("has_tqdm", [False, True])
def test_progress_is_one_line(capsys, monkeypatch, has_tqdm):
    if has_tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    show = Progress()
    for record in (Note("read"), report(10), Saved(10), report(20, 3.0)):
        show(record)
    printed = "".join(capsys.readouterr())
    assert "read" in printed
    assert "20/20" in printed
    assert "is saved" not in printed
    if not has_tqdm:
        note, line, again = printed.split("\r")[1:]
        assert (note, line[:10], again[-1]) == ("read\n", "step 10/20", "\n")
        assert len(again) > len(line) > 80

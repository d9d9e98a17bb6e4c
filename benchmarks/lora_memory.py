"""What a LoRA of rank 8 on SmolLM2-135M takes beside the frozen base: resident memory, step by step
(in a process of its own: python -m benchmarks lora_memory)."""

from __future__ import annotations

from benchmarks.process import peak_memory, reset_peak_memory, resident_memory

SHAPES = ((1, 16), (8, 64), (8, 256))  # of a batch


def main(threads: int) -> None:
    import numpy as np

    import numgpt  # before the line below imports NumPy

    numgpt.set_num_threads(threads)
    start = resident_memory()
    model, _ = numgpt.load("smollm2")
    base = model.parameters.nbytes / 1e6
    print("| | MB |\n| --- | --- |")
    print(f"| the weights, float32 | {base:,.0f} |")
    print(f"| resident with them, beyond an empty process | {resident_memory() - start:,.0f} |")
    before = resident_memory()
    model.add_adapter(numgpt.LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = numgpt.AdamW(model, lr=1e-3)
    rng = np.random.default_rng(0)
    for batch, time in SHAPES:
        ids = rng.integers(model.config.vocab_size, size=(batch, time + 1))
        reset_peak_memory()
        for _ in range(2):
            model.loss_and_grads(ids[:, :-1], ids[:, 1:])
            optimizer.step(grad_clip=1.0)
        print(
            f"| more at the peak of steps of {batch} x {time} tokens |"
            f" {peak_memory() - before:,.0f} ({(peak_memory() - before) / base:.0%}) |",
            flush=True,
        )
    numbers = 4 * model.num_parameters(trainable=True) * 4 / 1e6
    print(
        f"| of it the adapter, its gradients and moments | {numbers:,.0f} ({numbers / base:.0%}) |"
    )

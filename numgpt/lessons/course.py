"""The lessons, in order."""

from __future__ import annotations

from typing import NamedTuple


class Lesson(NamedTuple):
    number: int
    title: str
    afterwards: str  # what you can do
    minutes: int  # to read, without the exercises
    needs: str


LESSONS = (
    Lesson(1, "From text to ids", "train and explain a byte-level BPE", 15, "Python"),
    Lesson(2, "From a neuron to a layer", "derive a backward, and check it", 15, "NumPy, ∂"),
    Lesson(3, "Softmax and cross-entropy", "say what a model is trained to do", 15, "2"),
    Lesson(4, "LayerNorm and GELU", "derive what has several paths", 15, "2"),
    Lesson(5, "Attention", "derive attention, and cut it into tiles", 20, "3"),
    Lesson(6, "Your own GPT", "write GPT-2 forwards and backwards", 20, "2 to 5"),
    Lesson(7, "Training a model that writes", "train, and read what the curves say", 15, "6"),
    Lesson(8, "Sampling and the KV cache", "make a model write, and write fast", 15, "5"),
    Lesson(9, "Real weights: what Llama changes", "read any open model's page", 20, "6"),
    Lesson(10, "From continuing to answering", "derive and run LoRA, DPO, GRPO", 20, "3, 7"),
    Lesson(11, "Looking inside", "find out what a model does, and test it", 20, "5, 6"),
    Lesson(12, "Going fast", "count, measure, and make NumPy keep up", 15, "5, 6"),
)

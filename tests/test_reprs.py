"""What things say of themselves in a notebook: a line, with the sizes that tell what they are."""

import pytest

from numgpt import GPT, AdamW, CharTokenizer, Chat, GPTConfig, KVCache, Llama, LlamaConfig, load
from numgpt.evaluation.perplexity import Evaluation

MODEL = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=99))
SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
LLAMA = Llama(LlamaConfig(**SIZES, intermediate_size=16, vocab_size=9))
CASES = {
    "GPT": (lambda: MODEL, ("GPT", "2 layers", "vocabulary 99", "context 16", "float32")),
    "Llama": (lambda: LLAMA, ("Llama", "1 layers", "context 2048")),
    "parameters": (lambda: MODEL.parameters, ("28 arrays", "float32")),
    "optimizer": (lambda: AdamW(MODEL, lr=1e-3), ("AdamW", "lr=0.001", "0 steps", "GPT")),
    "cache": (lambda: KVCache(MODEL, 2, 5), ("0 of 5 positions", "2 sequences")),
    "characters": (lambda: CharTokenizer(["a", "b"]), ("CharTokenizer", "2 tokens")),
    "tokenizer": (lambda: load("shakespeare")[1], ("1024 tokens", "<|endoftext|>")),
    "chat": (lambda: Chat(*load("shakespeare")), ("0 messages",)),
    "evaluation": (lambda: Evaluation(10, 2.0, 30), ("perplexity 7.389", "10 tokens")),
}


@pytest.mark.parametrize("case", CASES)
def test_reprs_are_a_line(case):
    make, expected = CASES[case]
    text = repr(make())
    assert "\n" not in text
    assert len(text) < 300
    for part in expected:
        assert part in text

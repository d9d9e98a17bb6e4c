"""A Llama in llama.cpp, through llama-cpp-python: the other side of the rows with `-llama.cpp`.

llama.cpp is an inference engine in C++ with matrix kernels of its own. It reads GGUF, which the
gguf package writes here from numgpt's random weights. In Q8_0, 32 weights share a scale, and the
activations are rounded likewise. Keys and values are kept in float32, as numgpt keeps them.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.generating import numgpt_llama_model, prompt
from benchmarks.process import elsewhere


def write(path: Path, kind: str) -> None:
    """The file, matrices in F32 or Q8_0; without a tokenizer, as ids go in and come out."""
    import gguf

    model = numgpt_llama_model()
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(c.vocab_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    heads = {"q_proj.weight": c.num_attention_heads, "k_proj.weight": c.kv_heads}
    for name, array in model.parameters.items():
        if count := heads.get(name.rpartition("self_attn.")[2]):
            # The two coordinates that RoPE rotates together are neighbours there.
            pairs = array.reshape(count, 2, c.head_size // 2, c.hidden_size)
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        dtype = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        stored = names.get_name(f"model.{name}", try_suffixes=(".weight",))
        writer.add_tensor(stored, gguf.quants.quantize(array, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decode(context: int, tokens: int, kind: str = "F32") -> Callable[[], list[int]]:
    """So many tokens after a prompt of `context`."""
    import llama_cpp

    directory = tempfile.TemporaryDirectory()  # llama.cpp maps the file
    path = Path(directory.name, "model.gguf")
    elsewhere(write, path, kind)
    threads = int(os.environ["BENCHMARK_THREADS"])
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=1024,
        n_threads=threads,
        n_threads_batch=threads,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    ids = prompt(context)[0].tolist()

    def run() -> list[int]:
        assert directory
        llama.reset()  # forget the prompt
        return list(itertools.islice(llama.generate(ids, temp=0), tokens))

    return run

"""Record TensorFlow's bundles:  python tests/goldens/record_tensorflow.py  (needs tensorflow).

Writes tensorflow/one_shard, named and shaped as OpenAI's GPT-2, and tensorflow/three_shards, with
all dtypes and a tensor of strings; beside each, its arrays as .npz.
"""

import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent / "tensorflow"
DTYPES = ["float32", "float64", "int32", "uint8", "int16", "int8", "int64", "bool", "float16"]


def like_gpt2() -> dict[str, np.ndarray]:
    shapes = {"wpe": [8, 4], "wte": [11, 4], "ln_f/g": [4], "ln_f/b": [4]}
    for layer in range(2):
        shapes |= {f"h{layer}/ln_{i}/{name}": [4] for i in (1, 2) for name in "gb"}
        for name, inputs, outputs in (
            ("attn/c_attn", 4, 12),
            ("attn/c_proj", 4, 4),
            ("mlp/c_fc", 4, 16),
            ("mlp/c_proj", 16, 4),
        ):
            shapes |= {f"h{layer}/{name}/w": [1, inputs, outputs], f"h{layer}/{name}/b": [outputs]}
    rng = np.random.default_rng(0)
    return {f"model/{name}": rng.random(shape, np.float32) for name, shape in shapes.items()}


def of_all_dtypes() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    shards: list[dict[str, np.ndarray]] = [{}, {}, {}]
    for number, dtype in enumerate(DTYPES):
        # three of each: what follows three bytes is not aligned
        array = rng.integers(0 if dtype == "uint8" else -100, 100, 3)
        shards[number % 3][f"dtypes/{dtype}"] = array.astype(dtype)
    shards[0]["scalar"] = np.float32(2.5)
    shards[1]["empty"] = np.zeros((0, 3), np.float32)
    return shards


def save(prefix: Path, tensors: dict[str, object]) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(tensor) for tensor in tensors.values()],
    )


if __name__ == "__main__":
    shutil.rmtree(HERE, ignore_errors=True)
    one, three = HERE / "one_shard", HERE / "three_shards"
    one.mkdir(parents=True)
    three.mkdir()
    save(one / "model.ckpt", like_gpt2())
    tf.compat.v1.train.update_checkpoint_state(str(one), "model.ckpt")
    np.savez_compressed(HERE / "one_shard.npz", **like_gpt2())
    shards = of_all_dtypes()
    bfloat16 = tf.constant([1.5, -2.0, 3.140625], tf.bfloat16)
    for number, arrays in enumerate(shards):
        extra = {"dtypes/bfloat16": bfloat16, "strings": ["left", "out"]} if number == 2 else {}
        save(three / f"part{number}", {**arrays, **extra})
    shards[2]["dtypes/bfloat16"] = tf.bitcast(bfloat16, tf.uint16).numpy()  # NumPy has the bits
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(three / f"part{number}") for number in range(3)],
        destination_prefix=str(three / "model.ckpt"),
    )
    np.savez_compressed(HERE / "three_shards.npz", **{k: a for s in shards for k, a in s.items()})

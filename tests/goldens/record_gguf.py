"""Record the gguf package's answers:  python tests/goldens/record_gguf.py  (needs gguf).

Writes gguf.npz beside this file: the weights of random blocks of each quantised type. The blocks
are drawn from a fixed seed, here and in the tests, so that only the answers are stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from formats.gguf_writer import QUANTISED, golden_blocks  # noqa: E402

if __name__ == "__main__":
    path = HERE / "gguf.npz"
    answers = {
        kind: gguf.dequantize(golden_blocks(kind), gguf.GGMLQuantizationType[kind])
        for kind in QUANTISED
    }
    np.savez_compressed(path, **answers)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")

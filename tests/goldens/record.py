"""Record others' answers:  python tests/goldens/record.py  (needs torch, transformers and gguf).

Writes the .npz files beside this one. Inputs are drawn from fixed seeds, here and in the tests, so
that only the answers are stored.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from formats import gguf_writer  # noqa: E402
from generation import test_beam_search, test_processors  # noqa: E402
from layers.cases import CASES, golden_inputs  # noqa: E402
from models import references  # noqa: E402
from objectives import test_objectives  # noqa: E402
from training import test_adamw  # noqa: E402


def record_layers() -> dict[str, np.ndarray]:
    answers = {}
    for name, case in CASES.items():
        for shape in case.shapes:
            for dtype in ("float32", "float64"):
                results = case.theirs(golden_inputs(name, shape, np.dtype(dtype)))
                prefix = f"{name}/{'x'.join(map(str, shape))}/{dtype}/"
                answers |= {prefix + key: array for key, array in results.items()}
    return answers


if __name__ == "__main__":
    np.savez_compressed(HERE / "layers.npz", **record_layers())
    np.savez_compressed(HERE / "models.npz", **references.record())
    np.savez_compressed(HERE / "adamw.npz", **test_adamw.record())
    np.savez_compressed(HERE / "processors.npz", **test_processors.record())
    np.savez_compressed(HERE / "beams.npz", **test_beam_search.record())
    np.savez_compressed(HERE / "gguf.npz", **gguf_writer.record())
    np.savez_compressed(HERE / "objectives.npz", **test_objectives.record())
    for path in sorted(HERE.glob("*.npz")):
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")

"""Which matrix kernels NumPy's BLAS runs on, and how many threads it uses.

NumPy's wheels carry OpenBLAS with kernels for several generations of CPU; OpenBLAS takes one when
it is loaded. For AMD CPUs it may take the AVX2 kernels where AVX-512 ones are there and run at
twice the speed (numpy/numpy#27147). OPENBLAS_CORETYPE overrides its choice, but only if it is set
before NumPy is imported, and kernels that the CPU lacks kill the process; so this module reads the
CPU's flags first.

Between two products OpenBLAS's threads keep their cores busy waiting, by default for some 20 ms,
and numgpt's own threads would have to compete with them. They are told to sleep after 0.4 ms, in
which products that follow each other closely still find them awake.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import sys
from pathlib import Path

# What OpenBLAS's SkylakeX kernels are compiled for.
AVX512_FLAGS = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
THREAD_TIMEOUT = "20"  # 2^20 ticks of an x86 CPU's clock, some 0.4 ms


def cpu_flags() -> set[str]:
    """The instruction sets that Linux reports for this CPU; empty where there is no
    /proc/cpuinfo."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def bundled_openblas() -> list[Path]:
    """The OpenBLAS libraries inside NumPy's wheel, found without importing NumPy."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return []
    package = Path(spec.origin).parent
    folders = (package.parent / "numpy.libs", package / ".dylibs")
    return [path for folder in folders for path in sorted(folder.glob("*openblas*"))]


def choose_kernels() -> str:
    """Import NumPy with OpenBLAS's AVX-512 kernels where they fit, and with threads that soon
    sleep; returns a sentence on the kernels.

    The variables are removed again once NumPy is loaded: other libraries and child processes choose
    for themselves. A value that the user set always stays.
    """
    if "numpy" in sys.modules:
        return "left to the BLAS: NumPy was imported before numgpt, too late to choose"
    choices = {}
    if value := os.environ.get("OPENBLAS_CORETYPE"):
        sentence = f"OPENBLAS_CORETYPE={value}, set by the user"
    elif not bundled_openblas():
        sentence = "left to the BLAS: not the OpenBLAS of NumPy's wheels"
    elif cpu_flags() >= AVX512_FLAGS:
        sentence = "AVX-512 kernels (SkylakeX), chosen by numgpt"
        choices["OPENBLAS_CORETYPE"] = "SkylakeX"
    else:
        sentence = "left to the BLAS: no AVX-512 seen on this CPU"
    if platform.machine() in ("x86_64", "AMD64") and "OPENBLAS_THREAD_TIMEOUT" not in os.environ:
        choices["OPENBLAS_THREAD_TIMEOUT"] = THREAD_TIMEOUT
    os.environ.update(choices)
    try:
        import numpy  # noqa: F401  (loads OpenBLAS, which reads the variables)
    finally:
        for name in choices:
            os.environ.pop(name, None)
    return sentence


class OpenBLAS:
    """The few entry points of a loaded OpenBLAS that are needed here, through ctypes."""

    def __init__(self, library: ctypes.CDLL, prefix: str, suffix: str):
        def entry(name: str):
            return getattr(library, f"{prefix}openblas_{name}{suffix}")

        self.set_num_threads = entry("set_num_threads")
        self.get_num_threads = entry("get_num_threads")
        core, config = entry("get_corename"), entry("get_config")
        core.restype = config.restype = ctypes.c_char_p
        self.core = core().decode()
        self.config = config().decode()


def find_openblas() -> OpenBLAS | None:
    """The OpenBLAS that NumPy loaded, or None where NumPy runs on another BLAS."""
    import numpy  # noqa: F401

    paths = [str(path) for path in bundled_openblas()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text().splitlines()
        mapped = {line.split(maxsplit=5)[-1] for line in lines}
        paths += sorted(path for path in mapped if "openblas" in Path(path).name)
    for path in paths:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in ("scipy_", ""):
            for suffix in ("64_", ""):
                with contextlib.suppress(AttributeError):
                    return OpenBLAS(library, prefix, suffix)
    return None


def physical_memory() -> float:
    """Bytes of memory that the machine has; infinite where the system doesn't tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


CHOICE = choose_kernels()
OPENBLAS = find_openblas()


def describe() -> dict[str, str]:
    """What the products run on: the BLAS, its kernels, who chose them."""
    import numpy as np

    if OPENBLAS is not None:
        return {"BLAS": OPENBLAS.config, "kernels": OPENBLAS.core, "choice": CHOICE}
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {
        "BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "kernels": "not reported by this BLAS",
        "choice": CHOICE,
    }

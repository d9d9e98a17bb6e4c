"""oneDNN's matrix products, where it is installed: of fewer bits, and float32's beside them.

It is the library below PyTorch and CTranslate2. Two things of it are called here:

    its gemms       a @ b of float32, or of bfloat16, as they lie in memory; float32 out
    a primitive     x Wᵀ, made for its sizes: W (O, I) in fewer bits, or few rows x; float32 out

Packed. With v numbers in 32 bits (2 of bfloat16, 4 of int8), W lies as (O/64, I/16v, 16, 64, v): an
instruction takes v inputs of 16 outputs, and sixteen rows take hardly longer than one. That of int8
needs an unsigned x: it comes as x + 128, and `shift` takes 128 Σ_i W_oi off.

Threads. oneDNN's, OpenMP's, spin while they wait, as OpenBLAS's do: on two cores, products by both
in turn took up to twenty times as long. So where oneDNN is used, OpenBLAS is held to one thread,
and large products of float32, but for a single row, are oneDNN's (products.py). In numgpt's own
threads, and in a forked child, a product keeps to its thread.
"""

from __future__ import annotations

import ctypes.util
import functools
import importlib.metadata
import os
import threading
from typing import Any

import numpy as np

from numgpt.runtime.scratch import address, empty, own_pages
from numgpt.runtime.threads import blas_is_single_threaded, hold_blas, in_a_piece, num_threads

VARIABLE = "NUMGPT_ONEDNN"  # 0: it is not used; a path: this library
DISTRIBUTION = "onednn-cpu-gomp"  # what the extra installs
SETTINGS = {"GOMP_SPINCOUNT": "20000", "ONEDNN_VERBOSE": "none"}  # spin 0.3 ms; print nothing
INPUTS, OUTPUTS = 16, 64  # of a block of packed weights
CODES = {"float32": 3, "bfloat16": 2, "int8": 5, "uint8": 6}  # dnnl_types.h of all oneDNN 3
CPU, IN_ORDER, AS_IT_LIKES, BY_OUTPUT, WEIGHTS_LIE, BLOCKS = 1, 1, 1, 1 << 1, 131, 264
ARGUMENTS = 1, 17, (WEIGHTS := 33), 4096 | WEIGHTS, 41  # source, target, W, scales, shift
GEMMS = {np.dtype("f4"): "sgemm", np.dtype("u2"): "gemm_bf16bf16f32"}  # in no manual: on trial
OF_X = {"float32": "float32", "bfloat16": "bfloat16", "int8": "uint8"}  # by the kind of W
FEW_ROWS = {b"N": range(4, 33), b"T": range(4, 129)}  # by how b lies, which a gemm copies first


class _Argument(ctypes.Structure):
    _fields_ = (("argument", ctypes.c_int), ("memory", ctypes.c_void_p))


class _Object(ctypes.c_void_p):
    """One of the library's, which it destroys after the last reference."""

    destroy: Any = None
    of: Any = None  # what it is a part of

    def __del__(self) -> None:
        if self.destroy is not None and self.value:
            self.destroy(self)


class OneDNN:
    """A loaded library."""

    def __init__(self, path: str):
        """Raises OSError, AttributeError or RuntimeError for what is none."""
        self.library = library = ctypes.CDLL(path)
        size, real, address = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
        sizes, matrix = ([ctypes.c_char] * 2 + [size] * 3, [address, size])  # type: Any, Any
        for name in GEMMS.values():
            if gemm := getattr(library, f"dnnl_{name}", None):
                gemm.argtypes = [*sizes, real, *matrix, *matrix, real, *matrix]
        library.dnnl_version.restype = ctypes.POINTER(ctypes.c_int)
        library.dnnl_primitive_desc_query_md.restype = address
        library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        library.dnnl_memory_set_data_handle.argtypes = [address, address]
        self.version = "{}.{}.{}".format(*library.dnnl_version()[:3])
        self._set_threads = getattr(library, "omp_set_num_threads", lambda count: None)
        self._process = os.getpid()
        self._engine = self._make("engine_create", CPU, ctypes.c_size_t(0))
        self._stream = self._make("stream_create", self._engine, IN_ORDER)
        for a in (np.arange(7 * n, dtype=np.float32).reshape(n, 7) for n in (3, 8)):
            for b in (a.T, np.ascontiguousarray(a.T)):
                out = np.empty((len(a), len(a)), np.float32)
                if not self.gemm(a, b, out) or not np.array_equal(out, a @ b):
                    raise RuntimeError("it gave a wrong product in its trial")

    def gemm(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> bool:
        """out = a @ b in float32, of float32 or bfloat16 (uint16); False: one lies in no order."""
        if out.strides[0] < out.strides[1]:
            return self.gemm(b.T, a.T, out.T)
        of_a, of_b, of_out = _lies(a), _lies(b), _lies(out)
        fits = a.shape[1] == len(b) and out.shape == (len(a), b.shape[1])
        fits &= a.dtype == b.dtype and a.dtype in GEMMS and out.dtype == np.float32
        if not (fits and of_a and of_b and of_out and of_out[0] == b"N"):
            return False  # NumPy does it, or says what is wrong
        side, place, step = of_b
        few = self.version > "3" and a.dtype == np.float32 and len(a) in FEW_ROWS[side]
        if few and a.flags.c_contiguous and out.flags.c_contiguous and self._process == os.getpid():
            self.product("float32", a, (place,), out, (step, 1) if side == b"N" else (1, step))
            return True
        self._choose_threads()
        sizes = of_a[0], side, *out.shape, a.shape[1]
        self._call(GEMMS[a.dtype], *sizes, 1.0, *of_a[1:], place, step, 0.0, *of_out[1:])
        return True

    def round(self, x: np.ndarray, out: np.ndarray) -> None:
        """x, float32 in C order -> out, bfloat16 as uint16; what is below 2⁻¹²⁶ becomes 0."""
        self._reorder(self._array("float32", x.size), x, self._array("bfloat16", x.size), out)

    def pack(self, kind: str, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """W (O, I) of a kind, in C order -> packed, of this shape; None where it is not to be."""
        if (order := self.order(kind, *rows.shape)) is None:
            return None
        lies = self._array(kind, *rows.T.shape, strides=(1, rows.shape[1]))
        self._reorder(lies, rows, order, packed := own_pages(shape, rows.dtype))
        return packed

    def unpack(self, kind: str, packed: np.ndarray, width: int) -> np.ndarray:
        """Packed weights, whole blocks of outputs -> W (O, I) in float32."""
        rows = empty((len(packed) * OUTPUTS, width), np.float32)
        plain = self._array("float32", width, len(rows), strides=(1, width))
        self._reorder(self.order(kind, *rows.shape), packed, plain, rows)
        return rows

    @functools.cache  # noqa: B019 (there is one library)
    def order(self, kind: str, outputs: int, width: int) -> _Object | None:
        """How packed W (O, I) lies; None where the library does not like it in this file's form."""
        self._set_threads(1)  # for more, small matrices would be cut into other blocks
        likes = self._array(kind, width, outputs, strides=None)
        described, _ = self._described(kind, 1, width, outputs, likes)
        order = _Object(self.library.dnnl_primitive_desc_query_md(described, WEIGHTS_LIE, 0))
        order.of = described
        blocks = ctypes.POINTER(ctypes.c_int64)()
        self._call("memory_desc_query", order, BLOCKS, ctypes.byref(blocks))
        together = {"bfloat16": 2, "int8": 4}[kind]
        area = (width + -width % (INPUTS * together)) * (outputs + -outputs % OUTPUTS)
        fits = self.library.dnnl_memory_desc_get_size(order) == area * 4 // together
        return order if fits and blocks[:3] == [INPUTS, OUTPUTS, together] else None

    def product(self, kind: str, x: np.ndarray, w: Any, out: np.ndarray, steps: Any = None) -> None:
        """out = x Wᵀ, of int8 (x Wᵀ) · scales + shift, x unsigned.  x (N, I), out (N, O): C order.
        `w`: where W, scales, shift (O,) lie; W packed, or with `steps` between inputs, outputs."""
        how = threading.get_ident(), self._choose_threads(), kind, (*x.shape, out.shape[1]), steps
        primitive, memories, arguments = self._product(how, w)
        self.library.dnnl_memory_set_data_handle(memories[0], address(x))
        self.library.dnnl_memory_set_data_handle(memories[1], address(out))
        self._call("primitive_execute", primitive, self._stream, len(memories), arguments)

    @functools.lru_cache(maxsize=512)  # noqa: B019 (of 4 kB each, and each keeps its primitive)
    def _product(self, how: tuple, w: tuple[int, ...]) -> Any:
        """A primitive, and its arguments for one W."""
        primitive, lies = self._primitive(*how)
        return primitive, *self._arguments(lies, (None, None, *w))

    @functools.lru_cache(maxsize=256)  # noqa: B019 (of up to half a megabyte each)
    def _primitive(self, thread: int, threads: int, kind: str, sizes: Any, steps: Any) -> Any:
        """Of each thread's own, as it has memory for its work; and how its arguments lie."""
        n, i, o = sizes
        order = self._array(kind, i, o, strides=steps) if steps else self.order(kind, o, i)
        self._set_threads(threads)
        described, lies = self._described(kind, n, i, o, order)
        return self._make("primitive_create", described), lies

    def _described(self, kind: str, n: int, i: int, o: int, order: Any) -> tuple[_Object, list]:
        """The product of x (N, I) and Wᵀ (I, O), with W in an order; how its arguments lie."""
        lies = [self._array(OF_X[kind], n, i), self._array("float32", n, o), order]
        shift = attributes = None
        if kind == "int8":
            lies += [self._array("float32", o), shift := self._array("float32", 1, o)]
            attributes = self._make("primitive_attr_create")
            self._call("primitive_attr_set_scales_mask", attributes, WEIGHTS, BY_OUTPUT)
        matrices = lies[0], order, shift, lies[1], attributes
        return self._make("matmul_primitive_desc_create", self._engine, *matrices), lies

    def _array(self, kind: str, *shape: int, strides: Any = ()) -> _Object:
        """In C order, or with strides; None: in the order that the library likes."""
        numbers, by = ctypes.c_int64 * len(shape), "tag" if strides is None else "strides"
        order = AS_IT_LIKES if strides is None else numbers(*strides or (*shape[1:], 1))
        what = len(shape), numbers(*shape), CODES[kind], order
        return self._make(f"memory_desc_create_with_{by}", *what)

    def _arguments(self, lies: list, places: tuple[int | None, ...]) -> tuple[list[_Object], Any]:
        """Of a primitive, by how and where arrays lie."""
        of = zip(lies, [self._engine] * len(lies), map(ctypes.c_void_p, places), strict=True)
        memories = [self._make("memory_create", *each) for each in of]
        pairs = zip(ARGUMENTS, (memory.value for memory in memories), strict=False)
        return memories, (_Argument * len(memories))(*(_Argument(*pair) for pair in pairs))

    def _reorder(self, lies: Any, source: np.ndarray, to: Any, target: np.ndarray) -> None:
        self._choose_threads()
        how = lies, self._engine, to, self._engine, None
        described = self._make("reorder_primitive_desc_create", *how)
        memories, arguments = self._arguments([lies, to], (address(source), address(target)))
        reorder = self._make("primitive_create", described), self._stream
        self._call("primitive_execute", *reorder, len(memories), arguments)

    def _make(self, name: str, *arguments: Any) -> _Object:
        made, (what, _) = _Object(), name.removeprefix("matmul_").split("_create")
        self._call(name, ctypes.byref(made), *arguments)
        made.destroy = getattr(self.library, f"dnnl_{what.removeprefix('reorder_')}_destroy")
        return made

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self.library, f"dnnl_{name}")(*arguments):
            raise RuntimeError(f"dnnl_{name} failed with status {status}")

    def _choose_threads(self) -> int:
        alone = in_a_piece() or blas_is_single_threaded() or os.getpid() != self._process
        self._set_threads(count := 1 if alone else num_threads())
        return count


def _lies(matrix: np.ndarray) -> tuple[bytes, int, int] | None:
    """Whether it lies in columns, where, and how far a row, or column, is from the next."""
    (rows, columns), (down, across), size = matrix.shape, matrix.strides, matrix.itemsize
    if across == size and (down >= columns * size or rows == 1):
        return b"N", address(matrix), max(down // size, columns)
    if down == size and (across >= rows * size or columns == 1):
        return b"T", address(matrix.T), max(across // size, rows)
    return None


_finding, _known = threading.Lock(), list[tuple[OneDNN | None, str]]()


def find_onednn() -> tuple[OneDNN | None, str]:
    """The library, and a sentence on it.  From now on OpenBLAS keeps to one thread."""
    if not _known:  # once it is, no lock is taken, which a fork could leave locked
        with _finding:
            _known.extend([] if _known else [_find()])
    return _known[0]


def _find() -> tuple[OneDNN | None, str]:
    if (wanted := os.environ.get(VARIABLE)) == "0":
        return None, f"not used: {VARIABLE}=0"
    sentence = f"not installed: pip install 'numgpt[onednn]', or name a libdnnl by {VARIABLE}"
    files = [f for d in importlib.metadata.distributions(name=DISTRIBUTION) for f in d.files or ()]
    paths = [str(file.locate()) for file in files if file.name == "libdnnl.so.3"]
    for path in filter(None, [wanted] if wanted else [*paths, ctypes.util.find_library("dnnl")]):
        ours = SETTINGS.keys() - os.environ.keys()
        os.environ.update((name, SETTINGS[name]) for name in ours)
        try:
            library = OneDNN(path)
            hold_blas()
            return library, f"{library.version}, {path} ({VARIABLE}=0 leaves it)"
        except (OSError, AttributeError, RuntimeError) as error:
            sentence = f"not used: {path}: {error}"
        finally:
            for name in ours:
                del os.environ[name]
    return None, sentence

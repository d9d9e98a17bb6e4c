"""Nested data with arrays in it, as text that a page carries and its script reads.

Numbers of float64 are written as float32. Those of float32 are written as float16, each row divided
by a scale: eleven bits of a number, down to 4 · 10⁻⁹ of the row's largest, fewer below. A row is
the last axis, or where that is short the last ones. Whole numbers take the bytes they need.

In the JSON an array is {"shape", "dtype", "at", "scale", "length"}: where it begins among all
numbers of its kind, where its scales do among the float32 ones, and how many numbers have one.

The numbers of a kind are written as planes, all first bytes, all second bytes, …, as the high bytes
of numbers are much alike and the low ones are not, and all is compressed:

    base64(zlib(length of JSON, uint32 | JSON | planes of each kind))
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from typing import Any

import numpy as np

KINDS = {"half": "<f2", "float32": "<f4", "uint8": "u1", "uint16": "<u2", "uint32": "<u4"}
SHORT_ROW = 32  # numbers, for which a scale of their own would be much
HALF_LARGEST = 2.0**14  # what a row's largest number becomes: far from float16's ends


def encode(data: object) -> str:
    """Nested dicts, lists, named tuples, strings, numbers and arrays -> text."""
    arrays = _Arrays()
    described = {"data": arrays.described(data), "kinds": list(arrays.counts.items())}
    head = json.dumps(
        described, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()
    packed = [struct.pack("<I", len(head)), head, *arrays.planes()]
    return base64.b64encode(zlib.compress(b"".join(packed), 6)).decode("ascii")


class _Arrays:
    """The arrays met on the way, numbers of a kind together."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self.counts = dict.fromkeys(KINDS, 0)
        self.known: dict[tuple[str, bytes], dict[str, Any]] = {}

    def described(self, data: Any) -> Any:
        """What JSON can hold, arrays put aside."""
        if isinstance(data, np.ndarray):
            # Of arrays with equal numbers one is written: (T, H, D) is (T, H · D) as well.
            key = data.dtype.str, hashlib.sha256(np.ascontiguousarray(data).data).digest()
            if key not in self.known:
                self.known[key] = self._put(data)
            return self.known[key] | {"shape": list(data.shape)}
        if isinstance(data, tuple) and hasattr(data, "_asdict"):
            data = data._asdict()
        if isinstance(data, dict):
            return {name: self.described(value) for name, value in data.items()}
        if isinstance(data, (list, tuple)):
            return [self.described(value) for value in data]
        return data.item() if isinstance(data, np.generic) else data

    def _put(self, array: np.ndarray) -> dict[str, Any]:
        if array.dtype.kind in "iu":
            if array.size and array.min() < 0:
                raise ValueError("a negative whole number can't be written")
            kind = np.min_scalar_type(int(array.max(initial=0))).name
            return {"dtype": kind, "at": self._append(kind, array)}
        if array.dtype == np.float64:
            return {"dtype": "float32", "at": self._append("float32", array)}
        length = array.shape[-1]
        for size in reversed(array.shape[1:-1]):
            if length < SHORT_ROW:
                length *= size
        rows = array.reshape(-1, length).astype(np.float64)
        largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
        scale = (largest / HALF_LARGEST).astype(np.float32)
        scale[scale < np.finfo(np.float32).tiny] = 1  # what is that small becomes 0
        at = self._append("half", rows / scale)
        of_scales = {"scale": self._append("float32", scale), "length": length}
        return {"dtype": "half", "at": at} | of_scales

    def _append(self, kind: str, array: np.ndarray) -> int:
        """Returns where the array begins among the numbers of its kind."""
        at = self.counts[kind]
        self.counts[kind] += array.size
        self.kinds[kind].append(array.astype(KINDS[kind]).ravel())
        return at

    def planes(self) -> list[bytes]:
        found = []
        for kind, parts in self.kinds.items():
            numbers = np.concatenate([np.empty(0, KINDS[kind]), *parts])
            found.append(numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize).T.tobytes())
        return found

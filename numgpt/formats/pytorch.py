"""PyTorch's files (torch.save), read without PyTorch and without executing anything in them.

Since PyTorch 1.6 such a file is a zip archive whose members are stored uncompressed:

    <root>/data.pkl     the saved object, a pickle; a tensor in it is a call that names a storage
    <root>/byteorder    "little" or "big"; absent in older files, which are little-endian
    <root>/data/<key>   the raw elements of storage <key>, which several tensors may view

Before that, and on request still, it was one pickle after the other, then the storages:

    pickles             magic number, protocol version 1001, system information, the saved object,
                        the list of the storages' keys
    data                for each key in turn: the number of elements, int64, and the elements

The pickles are run by our own machine (pickles.py).  Files come from strangers, so everything they
say is checked before it is used.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from numgpt.formats.pickles import AGAIN, GARBAGE, Machine, RefusedError, brief
from numgpt.formats.tensors import DTYPES, LARGEST_HEADER, StoredTensor
from numgpt.reading import about, check_no_pointer

ZIP = b"PK\x03\x04"
MAGIC = 0x1950A86A20F9469CFC6C
MAGIC_PICKLED = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."  # after \x80 and the protocol


def is_pytorch(path: str | os.PathLike) -> bool:
    """Whether a file begins as those of torch.save do: as a zip archive or with a magic number."""
    with open(path, "rb") as file:
        start = file.read(32)
    return start.startswith(ZIP) or MAGIC_PICKLED in start


def read_pytorch(path: str | os.PathLike) -> Any:
    """The object in a file, its tensors as StoredTensors, its OrderedDicts as dicts, its dtypes as
    their names.

    Tensors are named by their keys, "model.wte.weight" in a dict in a dict, where they have keys.
    Only tensors, numbers, strings and plain containers of them are read.  A container may contain
    itself.  Raises ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(512)
    check_no_pointer(path, start)
    with about(path, RefusedError):
        if start.startswith(ZIP):
            value = _read_archive(path)
        elif MAGIC_PICKLED in start[:32]:
            value = _read_legacy(path)
        elif start[257:262] == b"ustar":
            raise RefusedError(
                "is a tar archive, PyTorch's format of 2016: load it with PyTorch and save it again"
            )
        else:
            raise RefusedError(f"is not a file of torch.save, or not a whole one; {AGAIN}")
    _name_tensors(value)
    return value


class _Archive(io.FileIO):
    """A zip archive of uncompressed members."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.size = self.seek(0, os.SEEK_END)
        try:
            with zipfile.ZipFile(self) as archive:
                self.members = {member.filename: member for member in archive.infolist()}
        except (*GARBAGE, zipfile.BadZipFile, NotImplementedError, OSError):
            self.close()
            raise RefusedError(f"is not a whole zip archive; {AGAIN}") from None

    def read(self, size: int | None = -1) -> bytes:
        """Not much at once, whatever length the archive says that its directory has."""
        if size is not None and size > LARGEST_HEADER:
            raise ValueError(size)
        return super().read(-1 if size is None else size)

    def place(self, name: str, least: int = 0) -> tuple[int, int]:
        """Where a member's data begins, and its length, of which `least` bytes are needed."""
        member, label = self.members.get(name), f"its member {brief(name)}"
        if member is None:
            raise RefusedError(f"{label} is missing; {AGAIN}")
        if member.flag_bits & 1 or member.compress_type != zipfile.ZIP_STORED:
            raise RefusedError(f"{label} is compressed or encrypted: zip it without either")
        header = b""
        if 0 <= member.header_offset < self.size:
            self.seek(member.header_offset)
            header = self.read(30)
        lengths = struct.unpack("<2H", header[26:30].ljust(4))  # of the name and the extra field
        begin, length = member.header_offset + 30 + sum(lengths), member.file_size
        if not header.startswith(ZIP) or begin + max(length, member.compress_size) > self.size:
            raise RefusedError(f"{label} is not inside the file; {AGAIN}")
        if length < least:
            raise RefusedError(f"{label} has {length} bytes, its tensors need {least}; {AGAIN}")
        return begin, length

    def whole(self, name: str) -> bytes:
        """The contents of a small member."""
        begin, length = self.place(name)
        if length > LARGEST_HEADER:
            raise RefusedError(f"its member {brief(name)} is larger than {LARGEST_HEADER} bytes")
        self.seek(begin)
        return self.read(length)


def _read_archive(path: Path) -> Any:
    with _Archive(path) as archive:
        names = archive.members
        if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
            raise RefusedError("is a TorchScript archive, a program: save the state_dict instead")
        roots = [name[: -len("data.pkl")] for name in names if name.endswith("/data.pkl")]
        roots = [root for root in roots if root.count("/") == 1]
        if len(roots) != 1:
            raise RefusedError("is a zip archive, but not one of torch.save: it has no data.pkl")
        (root,) = roots
        if root + "byteorder" in names and archive.whole(root + "byteorder") != b"little":
            raise RefusedError("is big-endian: save it again on a little-endian machine")
        pickled = io.BytesIO(archive.whole(root + "data.pkl"))
        machine = Machine(path, lambda key, least: archive.place(f"{root}data/{key}", least)[0])
        value = machine.run(pickled, "data.pkl")
        if pickled.read(1):
            raise RefusedError(f"its data.pkl goes on after its end; {AGAIN}")
        return value


def _read_legacy(path: Path) -> Any:
    # The storages' places follow from the last pickle: until then offsets count from a storage's
    # own beginning.
    machine = Machine(path, lambda key, least: 0)
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        with mmap.mmap(file.fileno(), min(size, LARGEST_HEADER), access=mmap.ACCESS_READ) as data:
            magic = machine.run(data, "magic number")
            version = machine.run(data, "protocol version")
            if (magic, version) != (MAGIC, 1001):
                raise RefusedError("is of another version of torch.save than 1001")
            system = machine.run(data, "system information")
            if type(system) is not dict or system.get("little_endian") is not True:
                raise RefusedError("is big-endian: save it again on a little-endian machine")
            value = machine.run(data, "saved object")
            keys = machine.run(data, "list of storages")
            end = data.tell()
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise RefusedError(f"its list of storages is not a list of keys; {AGAIN}")
        if len(set(keys)) != len(keys) or set(keys) != set(machine.storages):
            raise RefusedError(f"its list of storages is not that of its tensors; {AGAIN}")
        for key in keys:
            storage = machine.storages[key]
            (numel,) = storage.shape
            file.seek(end)
            if file.read(8) != numel.to_bytes(8, "little"):
                raise RefusedError(f"storage {brief(key)} lacks its {numel} elements; {AGAIN}")
            storage.offset = end + 8
            end = storage.offset + numel * DTYPES[storage.dtype].itemsize
        if end != size:
            raise RefusedError(f"is {size} bytes long, its storages end at {end}; {AGAIN}")
    for tensor, storage in machine.tensors:
        tensor.offset += storage.offset
    return value


def _name_tensors(value: Any) -> None:
    """Name tensors by their keys.  Each dict and tensor once: they may occur any number of times,
    and contain themselves."""
    if type(value) is not dict:
        return
    seen = {id(value)}
    parts = [("", value)]
    for prefix, entries in parts:
        for key, entry in entries.items():
            if id(entry) in seen:
                continue
            seen.add(id(entry))
            if isinstance(entry, StoredTensor):
                entry.name = f"{prefix}{key!s:.200}"
            elif type(entry) is dict and entries is value:
                parts.append((f"{key!s:.200}.", entry))

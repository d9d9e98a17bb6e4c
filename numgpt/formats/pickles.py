"""Pickles of tensors and plain containers, read without executing anything in them.

A pickle is a program for a machine with a stack, and Python's own machine lets it import and call
anything.  Ours knows the instructions that build containers, numbers and strings, and a handful
of names, which stand for nothing but themselves: it has no way to import, to call or to set an
attribute.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numgpt.formats.tensors import DTYPES, LARGEST_HEADER, StoredTensor, c_order
from numgpt.reading import about

LARGEST_NUMBER = 1 << 48  # of bytes or elements: beyond any disk, far from overflow
MOST_AXES = 64  # as in NumPy

# Our names of the dtypes, torch's types of storages of them, and torch's dtypes.
CODES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
TYPES = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in zip(TYPES, CODES, strict=True)}
STORAGES["torch.storage.UntypedStorage"] = "U8"
WIDTHS = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]
KNOWN = {*STORAGES, *(f"torch.{name}" for name in [*WIDTHS, "bool"])}
KNOWN |= {"collections.OrderedDict", "torch.Size", "torch._utils._rebuild_parameter"}
KNOWN |= {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}

# The pickle instructions that push their own argument, and those that push something new.
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
LITERALS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
# How many values are taken from the stack beforehand; None: all since the last MARK.
OPERANDS = dict.fromkeys(("TUPLE", "FROZENSET", "APPENDS", "SETITEMS", "ADDITEMS"))
OPERANDS |= {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
OPERANDS |= {"STACK_GLOBAL": 2, "REDUCE": 2}

AGAIN = "copy or download it again"
ONLY = "only tensors and plain containers are read; save its state_dict instead"
# What zipfile, pickletools and a stack without operands raise on garbage.
GARBAGE = (ValueError, LookupError, OverflowError, struct.error)


class RefusedError(ValueError):
    """A sentence that lacks only the file's name."""


# Left out of the stubs that describe the module.
_OPCODES: dict[str, Any] = vars(pickletools)["code2op"]


class _UnknownNameError(RefusedError):
    """The pickle refers to a class or function that plain data does not need."""


class _Global(str):
    """What a class, function or dtype is here: its name."""


class _Storage(StoredTensor):
    """The elements that tensors are views of; by itself, a tensor of one axis."""


def read_pickle(path: str | os.PathLike) -> Any:
    """The plain object in a pickle file: numbers, strings and containers of them.

    Raises ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    with open(path, "rb") as file:
        pickled = io.BytesIO(file.read(min(path.stat().st_size, LARGEST_HEADER)))

    def locate(key: str, least: int) -> int:
        raise RefusedError("has tensors: expected a plain pickle")

    with about(path, RefusedError):
        value = Machine(path, locate).run(pickled, "pickle")
        if pickled.read(1):
            raise RefusedError(f"goes on after its end; {AGAIN}")
    return value


class Machine:
    """Runs pickles that hold tensors and plain containers, and refuses all others.

    Instructions change only the lists, dicts and sets that the pickle itself has made.
    """

    def __init__(self, path: Path, locate: Callable[[str, int], int]):
        self.path = path
        self.locate = locate  # key and length in bytes of a storage -> its offset in the file
        self.storages: dict[str, _Storage] = {}
        self.tensors: list[tuple[StoredTensor, _Storage]] = []

    def run(self, file: io.BytesIO | mmap.mmap, part: str) -> Any:
        """Run the pickle at the file's position, up to its STOP."""
        self.stack: list[Any] = []  # since the last MARK
        self.outer: list[list[Any]] = []  # the stacks before each MARK
        self.memo: dict[int, Any] = {}
        self.ordered: dict[int, dict] = {}  # those that were OrderedDicts, by id
        begin = place = file.tell()
        try:
            name = ""
            while name != "STOP":
                place = file.tell()
                opcode = _OPCODES[file.read(1).decode("latin-1")]
                name, argument = opcode.name, opcode.arg
                # pickletools undoes escapes in lines of text, slowly and with warnings.  Of the
                # instructions that have such arguments, all but GLOBAL are refused anyhow.
                if name == "GLOBAL":
                    module, symbol = file.readline(), file.readline()
                    argument = f"{module[:-1].decode()}.{symbol[:-1].decode()}"
                elif argument and argument.n != pickletools.UP_TO_NEWLINE:
                    argument = argument.reader(file)
                self.step(name, argument)
            if self.outer or len(self.stack) != 1:
                raise ValueError("not one object")
            return self.stack[0]
        except _UnknownNameError as error:
            data = file.getvalue() if isinstance(file, io.BytesIO) else file
            if data.find(b"torch.nn.modules.", begin) < 0:
                raise
            raise RefusedError(f"holds a whole model, not its state_dict: it {error}") from None
        except RefusedError:
            raise
        except GARBAGE:
            raise RefusedError(f"its {part} is damaged at byte {place - begin}; {AGAIN}") from None

    def step(self, name: str, argument: Any) -> None:
        """Do what an instruction says.  IndexError, KeyError: its operands are missing."""
        items = self.take(OPERANDS[name]) if name in OPERANDS else []
        stack, memo = self.stack, self.memo
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in CONTAINERS:
            stack.append(CONTAINERS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            self.outer.append(stack)
            self.stack = []
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(items))
        elif name == "FROZENSET":
            stack.append(frozenset(map(_key, items)))
        elif name in ("APPEND", "APPENDS"):
            _expect(stack[-1], list, name).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = zip(map(_key, items[::2]), items[1::2], strict=True)
            _expect(stack[-1], dict, name).update(pairs)
        elif name == "ADDITEMS":
            _expect(stack[-1], set, name).update(map(_key, items))
        elif name == "GLOBAL":
            stack.append(_find(argument))
        elif name == "STACK_GLOBAL":
            module, symbol = (_expect(part, str, name) for part in items)
            stack.append(_find(f"{module:.200}.{symbol:.200}"))
        elif name == "REDUCE":
            function, arguments = items
            _expect(arguments, tuple, name)
            stack.append(self.call(_expect(function, _Global, name), arguments))
        elif name == "BUILD":  # a state_dict's _metadata: the versions of its modules
            _expect(stack.pop(), dict, name)
            if id(stack[-1]) not in self.ordered:
                raise RefusedError(f"sets attributes of a {brief(stack[-1])}: {ONLY}")
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise RefusedError(f"its pickle has the instruction {name}: {ONLY}")

    def take(self, count: int | None) -> list[Any]:
        """Remove the last `count` values from the stack, or those since the last MARK."""
        if count is not None:
            return [self.stack.pop() for _ in range(count)][::-1]
        items, self.stack = self.stack, self.outer.pop()
        return items

    def call(self, function: _Global, arguments: tuple) -> Any:
        """What a call of one of the known functions stands for."""
        if function == "collections.OrderedDict" and not arguments:
            made: dict = {}
            self.ordered[id(made)] = made
            return made
        if function == "torch.Size" and len(arguments) == 1:
            return _expect(arguments[0], tuple, function)
        if function == "torch._utils._rebuild_parameter" and len(arguments) == 3:
            return _expect(arguments[0], StoredTensor, function)
        # Then requires_grad and hooks; then whether to negate or conjugate, which nobody saves.
        later = {"torch._utils._rebuild_tensor": [0], "torch._utils._rebuild_tensor_v2": [2, 3]}
        if len(arguments) - 4 in later.get(function, []) and not any(arguments[6:]):
            return self.tensor(*arguments[:4])
        raise RefusedError(f"calls {brief(function)} with unknown arguments: {ONLY}")

    def storage(self, identity: Any) -> _Storage:
        """The storage that a persistent id names."""
        named = type(identity) is tuple and len(identity) in (5, 6) and identity[0] == "storage"
        parts: Any = identity if named else [None] * 5
        _, kind, key, _, numel, *view = parts
        known = type(kind) is _Global and type(key) is str and _is_count(numel)
        if not known or kind not in STORAGES or view not in ([], [None]):
            raise RefusedError(f"refers to something else than a storage of numbers: {ONLY}")
        dtype = STORAGES[kind]
        if key not in self.storages:
            offset = self.locate(key, numel * DTYPES[dtype].itemsize)
            self.storages[key] = _Storage(self.path, key, dtype, (numel,), offset)
        storage = self.storages[key]
        if (storage.dtype, storage.shape) != (dtype, (numel,)):
            raise RefusedError(f"storage {brief(key)} is described in two ways; {AGAIN}")
        return storage

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
        """A view of a storage, once it is certain that it lies inside."""
        _expect(storage, _Storage, "tensor")
        # Below on the stack is its key, where it is in a dict, or the call that makes a Parameter.
        below = [v for v in self.stack[-2:] if type(v) is not _Global][-1:]
        name = below[0] if below and type(below[0]) is str else storage.name
        if not (
            type(shape) is type(strides) is tuple
            and len(shape) == len(strides) <= MOST_AXES
            and all(map(_is_count, (offset, *shape, *strides)))
            and math.prod(max(n, 1) for n in shape) < LARGEST_NUMBER
        ):
            raise RefusedError(f"tensor {brief(name)} has an impossible shape; {AGAIN}")
        (numel,) = storage.shape
        if 0 in shape:  # it may be anywhere: rows from the end on of a matrix without columns
            offset = end = 0
        else:
            end = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if end > numel:
            raise RefusedError(
                f"tensor {brief(name)}, of shape {shape} and strides {strides}, ends at element"
                f" {end} of a storage of {numel}; {AGAIN}"
            )
        if math.prod(shape) > numel:
            raise RefusedError(
                f"tensor {brief(name)}, of shape {shape} and strides {strides}, repeats the"
                f" {numel} elements of its storage: save its clone() instead"
            )
        tensor = StoredTensor(
            self.path,
            name,
            storage.dtype,
            shape,
            storage.offset + offset * DTYPES[storage.dtype].itemsize,
            None if strides == c_order(shape) else strides,
        )
        self.tensors.append((tensor, storage))
        return tensor


def _find(name: str) -> _Global:
    if name not in KNOWN:
        raise _UnknownNameError(f"refers to {brief(name)}; {ONLY}")
    return _Global(name)


def _key(value: Any) -> Any:
    """A key of a dict or element of a set, if hashing it takes no time to speak of."""
    small = type(value) is not int or abs(value) < 1 << 64
    if not small or type(value) not in (str, bytes, int, float, bool, type(None)):
        raise RefusedError(f"has a value of type {type(value).__name__} as a key: {ONLY}")
    return value


def _expect(value: Any, kind: type, instruction: str) -> Any:
    if type(value) is not kind:
        raise RefusedError(f"its pickle's {instruction} works on a {brief(value)}; {AGAIN}")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_NUMBER


def brief(value: Any) -> str:
    """A few words for an error message; never the contents of a container."""
    return repr(str(value[:80])) if isinstance(value, str) else type(value).__name__

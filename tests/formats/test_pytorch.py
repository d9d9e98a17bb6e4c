"""torch.save's files: equality with PyTorch, damaged and hostile files, nothing executed.

The writer below makes both kinds of files without PyTorch, and PyTorch reads them where it is
installed; so what is proved with it holds for torch.save's own files.
"""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples, memory_below, overwrite, refused

from numgpt.formats.pytorch import is_pytorch, read_pytorch
from numgpt.formats.tensors import DTYPES, StoredTensor

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {"F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long"}
KINDS |= {"I32": "Int", "I16": "Short", "I8": "Char", "U8": "Byte", "BOOL": "Bool"}


@dataclass
class Tensor:
    """What torch.save says about a tensor."""

    key: object = "0"
    numel: object = 6
    offset: object = 0
    shape: object = (2, 3)
    strides: object = (3, 1)
    dtype: str = "F32"
    rebuild: str = "torch._utils\n_rebuild_tensor_v2"
    more: tuple = ()


def call(name, *arguments):
    return b"c" + name.encode() + b"\n" + emit(arguments) + b"R"


def emit(value):
    """The instructions, of protocol 2, that push a value.  Bytes are instructions already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Tensor):
        kind = f"ctorch\n{KINDS[value.dtype]}Storage\n".encode()
        identity = emit(("storage", kind, value.key, "cpu", value.numel, *value.more)) + b"Q"
        hooks = () if value.rebuild.endswith("tensor") else (False, OrderedDict())
        return call(value.rebuild, identity, value.offset, value.shape, value.strides, *hooks)
    if isinstance(value, dict):
        made = call("collections\nOrderedDict") if isinstance(value, OrderedDict) else b"}"
        return made + b"(" + b"".join(emit(key) + emit(v) for key, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(emit, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(emit, value)) + b"t"
    code = pickle.dumps(value, 2)[2:-1]
    return code.removesuffix(b"q\0") if isinstance(value, str) else code  # without the memo


def pickled(value):
    return b"\x80\x02" + emit(value) + b"."


def write_archive(path, data_pkl, storages=None, root="archive", **options):
    """The zip format.  storages: key -> bytes.  options: other members, and how to compress."""
    members = {"data.pkl": data_pkl, "byteorder": options.pop("byteorder", b"little")}
    members |= {f"data/{key}": data for key, data in (storages or {}).items()}
    members |= options.pop("members", {"version": b"3\n"})
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(
                    zipfile.ZipInfo(f"{root}/{name}"), data, options.get("compression")
                )
    return path


def write_legacy(path, data_pkl, storages=None, dtype="F32", little_endian=True, version=1001):
    """The format before.  storages: key -> bytes, all of one dtype."""
    storages = storages or {}
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}}
    data_pkl = data_pkl.replace(b"tQ", b"NtQ")  # storages' identities end with a view, of old
    data = pickled(MAGIC) + pickled(version) + pickled(system) + data_pkl + pickled([*storages])
    for elements in storages.values():
        data += struct.pack("<q", len(elements) // DTYPES[dtype].itemsize) + elements
    path.write_bytes(data)
    return path


SIX = np.arange(6, dtype="<f4").tobytes()
WRITERS = [write_archive, write_legacy]
both_formats = pytest.mark.parametrize("write", WRITERS)


def read_all(value):
    """Every tensor in an object, read; each container is entered once."""
    found, seen, waiting = [], set(), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor):
            array = np.empty(value.shape, np.float64)
            with np.errstate(all="ignore"):
                value.read_into(array)
            found.append(array)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


def refusal(path, message="."):
    said = refused(lambda: read_pytorch(path), message, path)
    assert said.startswith(str(path))
    return said


def built(value, state):
    return emit(value) + emit(state) + b"b"


EXAMPLE = {
    "model": built(
        OrderedDict(
            {
                "whole": Tensor(),
                "tied": Tensor(),
                "transposed": Tensor(shape=(3, 2), strides=(1, 3)),
                "slice": Tensor(offset=1, shape=(2, 2), strides=(3, 1)),
                "old": Tensor(rebuild="torch._utils\n_rebuild_tensor"),
                "parameter": call("torch._utils\n_rebuild_parameter", Tensor(), True, {}),
                "empty": Tensor(offset=9, shape=(0, 5), strides=(5, 1)),
            }
        ),
        {"_metadata": OrderedDict({"": {"version": 1}})},
    ),
    "scalar": Tensor("1", 1, 0, (), ()),
    "optimizer": {"state": {0: {"step": Tensor("1", 1, 0, (), ())}}, "betas": (0.9, 0.95)},
    "config": [1, -(1 << 70), 2.5, "é", None, True, False, (), [], {}, (1,), {3: 4.5}],
    "dtype": b"ctorch\nbfloat16\n",
    "shape": call("torch\nSize", (2, 3)),
}


def example(path, write):
    return write(path, pickled(EXAMPLE), {"0": SIX, "1": struct.pack("<f", 7)})


@both_formats
def test_reads_the_object_and_its_tensors(tmp_path, write):
    path = example(tmp_path / "a.pt", write)
    assert is_pytorch(path)
    data = read_pytorch(path)
    six = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = {"whole": six, "tied": six, "transposed": six.T, "slice": six[:, 1:]}
    expected |= {"old": six, "parameter": six, "empty": np.zeros((0, 5))}
    assert type(data["model"]) is dict
    assert list(data["model"]) == list(expected)
    for name, array in expected.items():
        tensor = data["model"][name]
        assert (tensor.name, tensor.dtype) == (f"model.{name}", "F32")
        np.testing.assert_array_equal(tensor.raw, array)
    assert data["scalar"].name == "scalar"
    assert data["optimizer"]["state"][0]["step"].raw[()] == data["scalar"].raw[()] == 7
    assert data["optimizer"]["betas"] == (0.9, 0.95)
    assert data["config"] == EXAMPLE["config"]
    assert data["dtype"] == "torch.bfloat16"
    assert data["shape"] == (2, 3)


@pytest.mark.live("torch", "transformers")
@both_formats
def test_pytorch_reads_what_the_writer_of_these_tests_writes(tmp_path, write):
    import torch

    path = example(tmp_path / "a.pt", write)
    assert_as_saved(read_pytorch(path), torch.load(path, weights_only=True), torch)


@both_formats
@pytest.mark.parametrize("dtype", KINDS)
def test_reads_every_dtype(tmp_path, write, dtype):
    elements = np.array([0, 1, 1, 0], "?").astype(DTYPES[dtype])
    options = {"dtype": dtype} if write is write_legacy else {}
    described = pickled([Tensor("k", 4, 0, (4,), (1,), dtype)])
    path = write(tmp_path / "a.pt", described, {"k": elements.tobytes()}, **options)
    (tensor,) = read_pytorch(path)
    assert (tensor.name, tensor.dtype) == ("k", dtype)
    np.testing.assert_array_equal(tensor.raw, elements)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_plain_containers_of_every_binary_protocol(tmp_path, protocol):
    inner = ["same"] * 3
    value = {"a": inner, "again": inner, "b": b"bytes", "t": (1, (2,), (3, 4), (5, 6, 7), (8,) * 4)}
    value |= {"many": list(range(-300, 3000, 7)), "long": "x" * 300, "big": 1 << 100}
    if protocol >= 4:
        value["sets"] = [{1, 2}, frozenset("ab"), set()]
    if protocol == 2:  # a call of _codecs.encode
        del value["b"]
    path = write_archive(tmp_path / "a.pt", pickle.dumps(value, protocol))
    read = read_pytorch(path)
    assert read == value
    assert read["a"] is read["again"]


# Equality with PyTorch


def assert_as_saved(ours, theirs, torch):
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach()
        assert ours.shape == tuple(theirs.shape)
        if theirs.dtype is torch.bfloat16:
            np.testing.assert_array_equal(ours.raw, theirs.view(torch.uint16).numpy())
        else:
            assert ours.raw.dtype == theirs.numpy().dtype
            np.testing.assert_array_equal(ours.raw, theirs.numpy())
        if ours.is_float:
            values = np.empty(ours.shape, np.float32)
            with np.errstate(over="ignore"):
                ours.read_into(values)
            np.testing.assert_array_equal(values, theirs.float().numpy())
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_as_saved(ours[key], theirs[key], torch)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_as_saved(our, their, torch)
    elif isinstance(theirs, torch.dtype):
        assert ours == str(theirs)
    else:
        assert ours == theirs
        assert type(ours) is type(theirs)


VIEWS = {
    "as it is": lambda t: t,
    "transposed": lambda t: t.T if t.dim() == 2 else t,
    "every second": lambda t: t[::2] if t.dim() else t,
    "later part": lambda t: t[1:] if t.dim() else t,
    "no elements": lambda t: t[:0] if t.dim() else t,
    "one element": lambda t: t.flatten()[:1].reshape(()) if t.numel() else t,
    "more axes": lambda t: t[None, ..., None],
    "split": lambda t: t.chunk(2, -1)[-1] if t.dim() else t,
}
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
NAMES |= {"I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
DRAWN = st.tuples(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(sorted(VIEWS)),
    st.booleans(),
)


@pytest.mark.live("torch", "transformers")
@given(
    drawn=st.dictionaries(KEYS, DRAWN, max_size=5),
    plain=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | KEYS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(KEYS | st.integers(-9, 1 << 60), inner, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=8,
    ),
    archive=st.booleans(),
    protocol=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150)
def test_reads_what_pytorch_saves(tmp_path_factory, drawn, plain, archive, protocol, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = OrderedDict()
    for key, (kind, shape, view, parameter) in drawn.items():
        base = torch.randint(-100, 100, shape, generator=generator) / 8
        base = base.to(getattr(torch, NAMES[kind]))
        tensor = VIEWS[view](base)
        if parameter and tensor.is_floating_point():
            tensor = torch.nn.Parameter(tensor)
        tensors[key] = tensor
        tensors[key + " shared"] = base[1:] if shape else base[None]
    value = {"tensors": tensors, "plain": plain, "dtype": torch.float16}
    value |= {"list": [*tensors.values()], "shape": torch.Size([2, 3])}
    path = tmp_path_factory.mktemp("p") / "a.pt"
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    ours = read_pytorch(path)
    assert_as_saved(ours, value, torch)
    for key in drawn:
        assert ours["tensors"][key].name == f"tensors.{key}"


@pytest.mark.live("torch", "transformers")
def test_refuses_by_name_what_else_pytorch_saves(tmp_path):
    import torch

    path = tmp_path / "a.pt"
    for tensor, message in (
        (torch.ones(2, 2).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.ones(2, dtype=torch.complex64), "ComplexFloatStorage"),
        (torch.ones(2, dtype=torch.uint16), "_rebuild_tensor_v3"),
        (torch.ones(2)._neg_view(), "_rebuild_tensor_v2"),
        (torch.ones(2).expand(1000, 2), r"tensor 'w'.*clone\(\)"),
    ):
        torch.save({"w": tensor}, path)
        refusal(path, message)
    for archive in (True, False):
        whole = torch.nn.Sequential(torch.nn.Linear(2, 2))
        torch.save(whole, path, _use_new_zipfile_serialization=archive)
        refusal(path, "holds a whole model, not its state_dict.*nn.modules.container.Sequential'")
    torch.save({"w": torch.ones(2).untyped_storage()}, path)
    assert read_pytorch(path)["w"].shape == (8,)  # bytes


# Files that contradict themselves


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 4), "strides": (4, 1)}, "ends at element 8 of a storage of 6"),
        ({"offset": 1}, "ends at element 7"),
        ({"strides": (1 << 40, 1)}, "ends at element"),
        ({"strides": (1 << 64, 1)}, "impossible"),
        ({"strides": (-3, 1)}, "impossible"),
        ({"strides": (3,)}, "impossible"),
        ({"strides": (3.0, 1)}, "impossible"),
        ({"strides": [3, 1]}, "impossible"),
        ({"strides": None}, "impossible"),
        ({"shape": (-2, -3)}, "impossible"),
        ({"shape": (True, True)}, "impossible"),
        ({"shape": (0, 1 << 40, 1 << 40), "strides": (0, 0, 0)}, "impossible"),
        ({"shape": (1,) * 65, "strides": (1,) * 65}, "impossible"),
        ({"shape": (1, 6), "strides": (1 << 200, 1)}, "impossible"),
        ({"offset": -1}, "impossible"),
        ({"offset": "0"}, "impossible"),
        ({"offset": False}, "impossible"),
        ({"shape": (1 << 30,) * 1, "strides": (0,)}, "repeats"),
        ({"shape": (4, 3), "strides": (1, 1)}, "repeats"),
        ({"numel": -1}, "storage"),
        ({"numel": 6.0}, "storage"),
        ({"numel": True}, "storage"),
        ({"key": 0}, "storage"),
        ({"key": [0]}, "storage"),
        ({"more": (("0", 0, 6),)}, "storage"),
        ({"more": (None, None)}, "storage"),
    ],
)
@both_formats
def test_refuses_tensors_outside_their_storage(tmp_path, write, changes, message):
    path = write(tmp_path / "a.pt", pickled({"w": Tensor(**changes)}), {"0": SIX})
    said = refusal(path, message)
    assert "storage" in said or "tensor 'w'" in said


@both_formats
def test_a_tensor_may_have_many_axes_and_axes_of_one_any_stride(tmp_path, write):
    tensors = [Tensor(shape=(1,) * 58 + (6,), strides=(1 << 40,) * 58 + (1,))]
    tensors += [Tensor(shape=(1,) * 64, strides=(1,) * 64), Tensor(shape=(2, 3), strides=(0, 2))]
    data = read_pytorch(write(tmp_path / "a.pt", pickled(tensors), {"0": SIX}))
    np.testing.assert_array_equal(data[0].raw.ravel(), np.arange(6))
    np.testing.assert_array_equal(data[1].raw.ravel(), [0])
    np.testing.assert_array_equal(data[2].raw, [[0, 2, 4], [0, 2, 4]])
    assert len(read_all(data)) == 3


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (write_archive, {"storages": {}}, "'archive/data/0' is missing"),
        (write_archive, {"storages": {"0": SIX[:-1]}}, "'archive/data/0' has 23 bytes.* need 24"),
        (write_archive, {"byteorder": b"big"}, "big-endian"),
        (write_archive, {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
        (write_archive, {"members": {"constants.pkl": b""}}, "TorchScript"),
        (write_archive, {"members": {"code/__torch__.py": b""}}, "TorchScript"),
        (write_archive, {"members": {"data.pkl": None}}, r"no data\.pkl"),
        (write_archive, {"root": "a/b"}, r"no data\.pkl"),
        (write_legacy, {"little_endian": False}, "big-endian"),
        (write_legacy, {"little_endian": 1}, "big-endian"),
        (write_legacy, {"version": 1000}, "another version"),
        (write_legacy, {"storages": {}}, "list of storages"),
        (write_legacy, {"storages": {"0": SIX, "1": SIX}}, "list of storages"),
        (write_legacy, {"storages": {"0": SIX[:-4]}}, "storage '0' lacks its 6 elements"),
        (write_legacy, {"storages": {"0": SIX + SIX}}, "storage '0' lacks its 6 elements"),
    ],
)
def test_refuses_a_file_that_is_not_whole_or_contradicts_itself(tmp_path, write, options, message):
    options = {"storages": {"0": SIX}, **options}
    refusal(write(tmp_path / "a.pt", pickled({"w": Tensor()}), **options), message)


def test_refuses_archives_whose_directory_lies(tmp_path):
    path = write_archive(tmp_path / "a.pt", pickled({"w": Tensor()}), {"0": SIX})
    data = path.read_bytes()
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    entry = data.index(b"PK\x01\x02", entry + 1)  # the third: data/0
    for place, number in [(20, 1 << 30), (24, 1 << 30), (42, 1 << 30), (42, 7), (42, 0x7FFFFFFF)]:
        changed = bytearray(data)
        struct.pack_into("<I", changed, entry + place, number)
        path.write_bytes(changed)
        refusal(path, "'archive/data/0'|whole zip")
    changed = bytearray(data)
    changed[entry + 8] |= 1
    path.write_bytes(changed)
    refusal(path, "encrypted")


def test_refuses_an_oversized_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr("numgpt.formats.pytorch.LARGEST_HEADER", 2000)
    path = write_archive(tmp_path / "a.pt", pickled(["x" * 3000]))
    refusal(path, "larger than 2000")
    refusal(write_legacy(path, pickled(["x" * 3000])), "damaged")


@both_formats
def test_refuses_a_storage_that_is_described_in_two_ways(tmp_path, write):
    described = [Tensor(), Tensor(numel=7, shape=(7,), strides=(1,))]
    refusal(write(tmp_path / "a.pt", pickled(described), {"0": SIX}), "two ways")


def test_refuses_other_files(tmp_path):
    path = tmp_path / "a.pt"
    for data in [b"", b"\x80", b"hello" * 100, pickle.dumps({}), bytes(257) + b"ustar" + bytes(99)]:
        path.write_bytes(data)
        assert not is_pytorch(path)
        refusal(path, "tar archive" if b"ustar" in data else r"not a file of torch\.save")
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    refusal(tmp_path / "a.npz", r"no data\.pkl")
    with pytest.raises(FileNotFoundError):
        read_pytorch(tmp_path / "none.pt")


@both_formats
def test_refuses_a_file_cut_short_anywhere_or_with_more_behind(tmp_path, write):
    path = example(tmp_path / "whole.pt", write)
    data = path.read_bytes()
    cut = tmp_path / "cut.pt"
    for length in range(len(data)):
        overwrite(cut, data[:length])
        refusal(cut)
    if write is write_legacy:
        cut.write_bytes(data + b"\0")
        refusal(cut, "its storages end at")
    else:
        refusal(write_archive(cut, pickled([]) + b"."), "goes on after its end")


# Hostile pickles


class Calls:
    """Pickled, a call: what Python's own machine does on loading."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@both_formats
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", ["system", "eval", "getattr", "mkdir"])
def test_executes_nothing(tmp_path, write, protocol, function):
    marker = tmp_path / "executed"
    hostile = {
        "system": Calls(os.system, f"echo > {marker}"),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Calls(list, Calls(map, Calls(getattr, marker, "mkdir"), [0o755])),
        "mkdir": Calls(os.mkdir, str(marker)),
    }[function]
    data = pickle.dumps({"w": [hostile]}, protocol)
    refusal(write(tmp_path / "a.pt", data), "refers to|instruction")
    assert not marker.exists()
    pickle.loads(data)  # so it was hostile indeed
    assert marker.exists()


TOUCH = b"cos\nsystem\n"
ORDERED = b"ccollections\nOrderedDict\n"
LINE = b"ctorch._utils\n_rebuild_tensor_v2\n"


@both_formats
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (TOUCH, "refers to 'os.system'"),
        (b"cbuiltins\neval\n", "'builtins.eval'"),
        (b"c__builtin__\neval\n", "'__builtin__.eval'"),
        (b"cbuiltins\ngetattr\n", "'builtins.getattr'"),
        (b"ctorch.hub\nload\n", "'torch.hub.load'"),
        (b"ctorch\nload\n", "'torch.load'"),
        (b"ctorch.serialization os\nsystem\n", r"'torch\.serialization os\.system'"),
        (b"c__main__\nGPT\n)\x81}b", r"refers to '__main__\.GPT'; only tensors .*state_dict"),
        (b"c__main__\nGPT\n(X\x11\0\0\0torch.nn.modules.t", "whole model.*'__main__.GPT'"),
        (b"c" + b"a" * 9999 + b"\nb\n", "refers to 'aaa"),
        (b"ca\rb\x1b\nc\n", r"'a\\rb\\x1b\.c'"),
        (b"\x8c\x02os\x8c\x06system\x93", "'os.system'"),
        (b"\x8c\x02o\n\x8c\x02\xc2\x85\x93", r"'o\\n\.\\x85'"),
        (b"K\x01K\x02\x93", "STACK_GLOBAL works on a int"),
        (b"]K\x02\x93", "STACK_GLOBAL"),
        (b"\x8c\x02os\x93", "damaged"),
        (b"(S'ls'\nios\nsystem\n", "instruction STRING:"),
        (b"(ios\nsystem\n", "INST"),
        (b"(" + TOUCH + b"o", "os.system"),
        (b"(" + ORDERED + b"o", "OBJ"),
        (ORDERED + b")\x81", "NEWOBJ"),
        (ORDERED + b")}\x92", "NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\x01", "EXT2"),
        (b"\x84\x01\x01\x01\x01", "EXT4"),
        (b"\x97", "NEXT_BUFFER"),
        (b"]\x98", "READONLY_BUFFER"),
        (b"Pid\n", "PERSID"),
        (b"K\x01R", "damaged"),
        (b"K\x01)R", "REDUCE works on a int"),
        (b"X\x17\0\0\0collections.OrderedDict)R", "REDUCE works on a 'coll"),
        (ORDERED + b"K\x01R", "REDUCE works on a int"),
        (ORDERED + b"]\x85R", "'collections.OrderedDict' with unknown arguments"),
        (ORDERED + b"](K\x01K\x02ee\x85R", "damaged|unknown arguments"),
        (b"ctorch\nfloat32\n)R", "'torch.float32' with unknown arguments"),
        (b"ctorch\nFloatStorage\nK\x01\x85R", "'torch.FloatStorage' with unknown arguments"),
        (b"ctorch\nSize\n]\x85R", "works on a list"),
        (LINE + b")R", "unknown arguments"),
        (LINE + b"(K\0K\0))N}tR", "works on a int"),
        (LINE + b"(K\0K\0))N}}}tR", "unknown arguments"),
        (b"ctorch._utils\n_rebuild_parameter\n(K\x01\x88}tR", "works on a int"),
        (b"}}b", "sets attributes of a dict"),
        (b"]}b", "sets attributes of a list"),
        (LINE + b"}b", "sets attributes of a '"),
        (ORDERED + b")RK\x01b", "BUILD works on a int"),
        (ORDERED + b"}b", "sets attributes"),
        (b"K\x01Q", "storage"),
        (b"(X\x07\0\0\0storage" + TOUCH + b"tQ", "os.system"),
        (emit(("storage", "torch.FloatStorage", "0", "cpu", 6)) + b"Q", "storage"),
        (emit(("module", None, "file", "source")) + b"Q", "storage"),
        (b"}]K\x01s", "type list as a key"),
        (b"}}K\x01s", "as a key"),
        (b"})K\x01s", "as a key"),
        (b"}\x8a\x0a" + b"\x7f" * 10 + b"Ns", "as a key"),
        (b"\x8f(]\x90", "as a key"),
        (b"(]\x91", "as a key"),
        (b"}(K\x01u", "damaged"),
        (b"]K\x01K\x02s", "SETITEM works on a list"),
        (b"}K\x01a", "APPEND works on a dict"),
        (b")K\x01a", "APPEND works on a tuple"),
        (b"](K\x01\x90", "ADDITEMS works on a list"),
        (b"K\x01e", "damaged"),
        (b"t", "damaged"),
        (b"0", "POP"),
        (b"K\x01(", "damaged"),
        (b"(K\x01", "damaged"),
        (b"K\x01K\x01", "damaged"),
        (b"", "damaged"),
        (b"\x85", "damaged"),
        (b"h\x05", "damaged"),
        (b"j\xff\xff\xff\xff", "damaged"),
        (b"q\0", "damaged"),
        (b"\xff", "damaged"),
        (b"X\xff\xff\xff\xffabc", "damaged"),
        (b"\x8d" + b"\xff" * 8 + b"abc", "damaged"),
        (b"\x8d" + b"\xff" * 7 + b"\x7fabc", "damaged"),
        (b"\x8e" + b"\xff" * 7 + b"\x7fabc", "damaged"),
        (b"\x8b\xff\xff\xff\x7f", "damaged"),
        (b"\x8b\xff\xff\xff\xff", "damaged"),
        (b"X\x02\0\0\0\xff\xff", "damaged"),
        (b"cos\xff\nsystem\n", "damaged"),
        (b"I" + b"9" * 5000 + b"\n", "instruction INT:"),
        (b"L12\n", "instruction LONG:"),
        (b"Fnan(x\n", "instruction FLOAT:"),
        (b"Vx\\u1\n", "instruction UNICODE:"),
        (b"Sx\n", "instruction STRING:"),
    ],
)
def test_refuses_all_other_instructions(tmp_path, write, code, message):
    refusal(write(tmp_path / "a.pt", b"\x80\x02" + code + b"."), message)


@both_formats
def test_containers_may_contain_themselves_and_each_other_any_number_of_times(tmp_path, write):
    path = tmp_path / "a.pt"
    itself = read_pytorch(write(path, b"\x80\x02]q\0h\0a."))
    assert itself[0] is itself
    itself = read_pytorch(write(path, b"\x80\x02}q\0X\1\0\0\0ah\0s."))
    assert itself["a"] is itself
    for double in [b"](h%ch%ceq%c", b"h%ch%c\x86q%c"]:
        steps = b"".join(double % (i, i, i + 1) for i in range(100))
        value = read_pytorch(write(path, b"\x80\x02()q\0" + steps + b"t."))
        assert value[100][0] is value[100][1] is value[99]


@both_formats
@pytest.mark.parametrize("opening", [b"]", b"}K\1", b"("], ids=["list", "dict", "tuple"])
def test_containers_may_be_nested_deeply(tmp_path, write, opening):
    closing = {b"]": b"a", b"}K\1": b"s", b"(": b"t"}[opening]
    code = opening * 10_000 + b"N" + closing * 10_000
    value = read_pytorch(write(tmp_path / "a.pt", b"\x80\x02" + code + b"."))
    assert len(value) == 1
    refusal(write(tmp_path / "a.pt", b"\x80\x02}" + code + b"Ns."), "key")
    refusal(write(tmp_path / "a.pt", b"\x80\x02" + code + b"Q."), "storage")
    refusal(write(tmp_path / "a.pt", b"\x80\x02" + LINE + code + b"\x85R."))


@both_formats
def test_references_do_not_multiply_the_work(tmp_path, write):
    inner = b"}q\1(" + b"".join(emit(i) + emit(Tensor()) for i in range(300)) + b"u"
    outer = b"}(N" + inner + b"".join(emit(i) + b"h\1" for i in range(20_000)) + b"u"
    data = read_pytorch(write(tmp_path / "a.pt", b"\x80\x02" + outer + b".", {"0": SIX}))
    assert data[0] is data[19_999]
    assert data[0][299].name == "None.299"


def test_a_huge_memo_index_takes_no_memory(tmp_path):
    code = b"]r\xff\xff\xff\xff(j\xff\xff\xff\xffe"
    with memory_below(1_000_000):
        read_pytorch(write_archive(tmp_path / "a.pt", b"\x80\x02" + code + b"."))


def changed(data, changes):
    data = bytearray(data)
    for place, what, length, new in changes:
        place %= max(1, len(data))
        if what == "change":
            data[place : place + len(new)] = new
        elif what == "insert":
            data[place:place] = new
        elif what == "delete":
            del data[place : place + length]
        elif what == "duplicate":
            data[place:place] = data[place : place + length]
        elif what == "count" and data:  # sizes, offsets and instructions that are nearly right
            data[place] = (data[place] + length - 20) % 256
    return bytes(data)


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.sampled_from(["change", "insert", "delete", "duplicate", "count"]),
        st.integers(1, 40),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("part", ["archive", "legacy", "pickle"])
@examples(150, 500)
def test_a_damaged_file_is_refused_or_harmless(tmp_path, part, examples):
    damaged, pickle_of_it = tmp_path / "a.pt", pickled(EXAMPLE)
    whole = example(damaged, write_legacy if part == "legacy" else write_archive).read_bytes()

    @given(changes=CHANGES)
    @settings(max_examples=examples)
    def check(changes):
        if part == "pickle":  # in an archive that is whole
            data = io.BytesIO()
            write_archive(data, changed(pickle_of_it, changes), {"0": SIX, "1": SIX[:4]})
            overwrite(damaged, data.getvalue())
        else:
            overwrite(damaged, changed(whole, changes))
        with memory_below(50_000_000):
            try:
                read_all(read_pytorch(damaged))
            except ValueError as error:
                said = str(error)
                assert said.startswith(f"{damaged}: ")
                assert len(said.splitlines()) == 1

    check()

"""TensorFlow's bundles: round trips, equality with TensorFlow, damaged and hostile files."""

from pathlib import Path

import numpy as np
import pytest
from formats.tensorflow_writer import (
    CODES,
    block,
    bytes_field,
    entry,
    header,
    index_of,
    masked,
    number_field,
    plain_crc32c,
    shape_message,
    table,
    varint,
    write_bundle,
)
from formats.test_pytorch import CHANGES, changed
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import GOLDENS, examples, memory_below, overwrite, refused

from numgpt.formats import crc32c as crc32c_module
from numgpt.formats import tensorflow
from numgpt.formats.crc32c import crc32c, mask
from numgpt.formats.tensorflow import find_bundle, read_bundle

ONE, THREE = GOLDENS / "tensorflow" / "one_shard", GOLDENS / "tensorflow" / "three_shards"


def values(prefix):
    result = {}
    for name, tensor in read_bundle(prefix).items():
        result[name] = np.empty(tensor.shape, tensor.raw.dtype)
        if tensor.dtype == "BF16":
            result[name] = np.empty(tensor.shape, np.float32)
        tensor.read_into(result[name])
    return result


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        if array.dtype == np.uint16:  # bfloat16, which is read as float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


def refusal(prefix, match):
    """Reading raises one line that names the file."""
    refused(lambda: values(prefix), match, prefix)


# The checksum.


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
    ],
)
def test_crc32c_has_the_published_values(data, crc):
    assert crc32c(data) == plain_crc32c(data) == crc


def test_crc32c_is_masked_as_leveldb_does():
    assert mask(0xE3069283).to_bytes(4, "little") == masked(b"123456789")
    assert mask(0) == 0xA282EAD8


def test_the_sparse_polynomial_is_a_multiple():
    """x²⁰⁹ + x¹⁴⁴ + x⁵⁴ + x³⁹ + x¹⁴ + 1 ≡ 0 mod P, on which folding rests."""
    sparse = sum(1 << 209 - place for place in (0, *crc32c_module.PLACES))
    polynomial = 0x11EDC6F41
    while sparse.bit_length() > 32:
        sparse ^= polynomial << sparse.bit_length() - 33
    assert sparse == 0


@given(
    data=st.binary(max_size=3000),
    piece=st.sampled_from([1, 7, 300, 5000]),
    block=st.sampled_from([1, 2, 8]),
)
@settings(max_examples=200)
@example(data=bytes(range(251)) * 12, piece=300, block=2)
def test_crc32c_is_that_of_the_plain_loop_however_it_is_cut(data, piece, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crc32c_module, "PIECE", piece)
        patch.setattr(crc32c_module, "LARGEST_BLOCK", block)
        assert crc32c(data) == plain_crc32c(data)


def test_crc32c_of_a_large_array_takes_little_memory_and_leaves_it_alone():
    data = np.random.default_rng(0).integers(0, 256, 40_000_003, np.uint8)
    data.setflags(write=False)
    with memory_below(5e6):
        whole = crc32c(data)
    remainder = 0xFFFFFFFF  # by the table alone
    for byte in data[:1_100_000].tobytes():
        remainder = remainder >> 8 ^ crc32c_module.TABLE[(remainder ^ byte) & 0xFF]
    assert crc32c(data[:1_100_000]) == remainder ^ 0xFFFFFFFF
    data.setflags(write=True)
    data[39_000_000] ^= 1
    assert crc32c(data) != whole


# Bundles as they should be.

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name[0] != "\0"
)
ARRAYS = st.sampled_from(sorted(CODES, key=str)).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        # TensorFlow's bfloat16 as bits: below 0x7F80, so that no NaN changes its bits on the way
        elements=st.integers(0, 0x7F00) if dtype == np.uint16 else None,
    )
)


@given(
    arrays=st.dictionaries(NAMES, ARRAYS, max_size=6),
    count=st.integers(1, 3),
    a_block=st.integers(1, 4),
    interval=st.integers(1, 4),
)
@settings(max_examples=100)
def test_what_the_writer_wrote_is_read(tmp_path_factory, arrays, count, a_block, interval):
    prefix = tmp_path_factory.mktemp("b") / "model.ckpt"
    shards = [dict(list(arrays.items())[shard::count]) for shard in range(count)]
    write_bundle(prefix, shards, a_block=a_block, interval=interval)
    assert_equal(values(prefix), arrays)


def test_many_names_with_shared_beginnings_in_several_blocks(tmp_path):
    names = [f"model/h{layer}/attn/c_attn/w{part}" for layer in range(12) for part in range(30)]
    arrays = {name: np.float32([number]) for number, name in enumerate(names)}
    write_bundle(tmp_path / "m", [arrays], a_block=50)
    assert_equal(values(tmp_path / "m"), arrays)


@pytest.mark.parametrize("recorded", [ONE, THREE], ids=lambda path: path.name)
def test_bundles_that_tensorflow_wrote(recorded):
    with np.load(f"{recorded}.npz") as expected:
        arrays = dict(expected)
    assert_equal(values(recorded / "model.ckpt"), arrays)
    assert_equal(values(f"{recorded}/model.ckpt.index"), arrays)


def test_the_writer_tells_the_same_shapes_and_checksums_as_tensorflow(tmp_path):
    with np.load(f"{ONE}.npz") as expected:
        write_bundle(tmp_path / "model.ckpt", [dict(sorted(expected.items()))])
    ours = read_bundle(tmp_path / "model.ckpt")
    for name, tensor in read_bundle(ONE / "model.ckpt").items():
        assert (tensor.shape, tensor.checksum) == (ours[name].shape, ours[name].checksum)


@pytest.mark.live("tensorflow")
@pytest.mark.parametrize("long_names", [False, True])
def test_tensorflow_live(tmp_path, long_names):
    import tensorflow as tf

    rng = np.random.default_rng(3)
    if long_names:  # more than the 256 kB that TensorFlow puts into a block
        arrays = {rng.bytes(60).hex(): np.float32([number]) for number in range(3000)}
    else:
        shapes = [(), (0,), (5,), (2, 3), (1, 4, 12), (300, 700)]
        dtypes = [dtype for dtype in CODES if dtype != np.uint16]
        arrays = {f"v{d}/{s}": rng.integers(0, 2, s).astype(d) for s in shapes for d in dtypes}
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(arrays.values()),
    )
    assert_equal(values(tmp_path / "m"), arrays)


@pytest.mark.live("tensorflow")
def test_a_partitioned_variable_of_tensorflow_is_refused(tmp_path):
    import tensorflow as tf

    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"),
        tensor_names=["part"],
        shape_and_slices=["4 2 0,2:0,2"],
        tensors=[tf.zeros([2, 2])],
    )
    refusal(tmp_path / "m", "'part' is stored in slices")


def test_strings_and_variants_are_left_out(tmp_path):
    extra = [(b"_CHECKPOINTABLE_OBJECT_GRAPH", entry(7, (), 0, 4)), (b"v", entry(21, (), 4, 4))]
    write_bundle(tmp_path / "m", [{"a": np.zeros(0, np.float32)}], extra)
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(8))
    assert list(read_bundle(tmp_path / "m")) == ["a"]


def test_the_bundle_of_a_directory(tmp_path):
    assert find_bundle(ONE) == ONE / "model.ckpt"  # by the file `checkpoint`
    assert find_bundle(THREE) == THREE / "model.ckpt"  # the only one
    assert find_bundle(tmp_path) is None
    (tmp_path / "checkpoint").write_bytes(b"\xff another program's")
    assert find_bundle(tmp_path) is None
    for step in (1, 2):
        (tmp_path / f"model-{step}.index").touch()
    with pytest.raises(ValueError, match=r"several .*model-1\.index, model-2\.index"):
        find_bundle(str(tmp_path))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/run/model-1"\n')
    assert find_bundle(tmp_path) == tmp_path / "model-1"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-3"\n')
    with pytest.raises(ValueError, match=r"'model-3', but model-3\.index is not there"):
        find_bundle(tmp_path)


# Bundles as they should not be.


def small_bundle(directory: Path) -> Path:
    arrays = {f"model/h{i}/w": np.full((2, i), i, np.float32) for i in range(5)}
    arrays["model/wte"] = np.arange(6, dtype=np.int16)
    write_bundle(directory / "model.ckpt", [arrays, {"x": np.ones(3, np.float64)}], a_block=3)
    return directory / "model.ckpt"


def test_refuses_an_index_cut_short_anywhere(tmp_path):
    prefix = small_bundle(tmp_path)
    index = tmp_path / "model.ckpt.index"
    whole = index.read_bytes()
    for length in range(len(whole)):
        overwrite(index, whole[:length])
        refusal(prefix, r"model\.ckpt\.index: ")


def test_refuses_values_cut_short_or_changed(tmp_path):
    prefix = small_bundle(tmp_path)
    for file, name in ((0, "model/wte"), (1, "x")):
        data = tmp_path / f"model.ckpt.data-0000{file}-of-00002"
        whole = data.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            data.write_bytes(whole[:length])
            refusal(prefix, rf"data-0000{file}-of-00002: ends at byte {length}, .*again")
        for place in (-1, -len(whole)):
            data.write_bytes(whole)
            altered = bytearray(whole)
            altered[place] ^= 16
            data.write_bytes(altered)
            refusal(prefix, rf"data-0000{file}.*'{name if place == -1 else ''}.*checksum; copy")
        data.write_bytes(whole)
    data.unlink()
    refusal(prefix, r"model\.ckpt\.data-00001-of-00002 is missing; copy or download")


def test_a_missing_index_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_bundle(tmp_path / "model.ckpt")


GOOD = entry(1, (2,), 0, 8, masked(bytes(8)))
FIRST = (b"", header())


def entries(*values):
    return index_of([FIRST, *((b"abc"[i : i + 1], value) for i, value in enumerate(values))])


def with_block(contents, **options):
    return table([contents], [b"~"], **options)


def with_handles(*handles):
    """An index block that names these places instead of the data block's."""
    contents = block([FIRST, (b"a", GOOD)])
    pairs = [(bytes([65 + i]), varint(at) + varint(n)) for i, (at, n) in enumerate(handles)]
    return with_block(contents, index=block(pairs))


BLOCK = block([FIRST, (b"a", GOOD)])
META_AT = len(BLOCK) + 5
INDEX_AT = META_AT + len(block([])) + 5


def footer(*numbers, magic=None):
    whole = entries(GOOD)
    handles = b"".join(varint(number) for number in numbers).ljust(40, b"\0")
    return whole[:-48] + handles + (magic or whole[-8:])


def raw_entry(shared, key, value, size=None):
    size = len(value) if size is None else size
    return varint(shared) + varint(len(key)) + varint(size) + key + value


def restarts(*numbers):
    return b"".join(n.to_bytes(4, "little") for n in (*numbers, len(numbers)))


WRONG = {
    "empty": (b"", "don't end as an index"),
    "other magic": (footer(0, 1, 2, 3, magic=b"12345678"), "don't end as an index"),
    "index handle beyond": (footer(0, 0, 1 << 40, 9), "beyond its"),
    "index of huge size": (footer(0, 0, 0, (1 << 64) - 1), "beyond its"),
    "handle beyond 64 bits": (footer(0, 0)[:-46] + b"\xff" * 10 + footer(0)[-36:], "number"),
    "no such block": (with_handles((1 << 50, 8)), "beyond its"),
    "block in the footer": (with_handles((0, len(BLOCK) + 60)), "beyond its"),
    "block of huge size": (with_handles((0, 10_000)), "blocks have more than its"),
    "block any number of times": (with_handles(*[(0, len(BLOCK))] * 9), "blocks have more than"),
    "index points to itself": (with_handles((INDEX_AT, 20)), "beyond its"),
    "index points to the metaindex": (with_handles((META_AT, 8)), "no bundle header"),
    "blocks overlap": (with_handles((0, len(BLOCK)), (len(BLOCK) + 4, 1)), "checksum"),
    "block not on its bounds": (with_handles((0, len(BLOCK) - 1)), "checksum"),
    "snappy": (with_block(BLOCK, compression=1), "snappy"),
    "other compression": (with_block(BLOCK, compression=9), "method 9"),
    "empty block": (with_block(b""), "0 bytes"),
    "too many restarts": (with_block(b"\xff" * 8), "restarts"),
    "shares too much": (with_block(raw_entry(1, b"", header()) + restarts(0)), "contradicts"),
    "value too long": (
        with_block(raw_entry(0, b"", header(), size=1 << 63) + restarts(0)),
        "contradicts",
    ),
    "varint without end": (with_block(b"\x80" * 20 + restarts(0)), "number"),
    "varint of 11 bytes": (with_block(b"\x80" * 10 + b"\0" * 5 + restarts(0)), "number"),
    "long name": (index_of([FIRST, (b"a" * 1001, GOOD)]), "more than 1000"),
    "name is no text": (index_of([FIRST, (b"\xff", GOOD)]), "xff.* not UTF-8"),
    "no header": (index_of([(b"a", GOOD)]), "no bundle header"),
    "nothing": (table([], []), "no bundle header"),
    "no shards": (index_of([(b"", header(0))]), "0 data files"),
    "negative shards": (index_of([(b"", header(-1))]), "-1 data files"),
    "a billion shards": (index_of([(b"", header(10**9))]), "1000000000 data files"),
    "shards that are not there": (index_of([(b"", header(90_000))]), "00000-of-90000 is missing"),
    "big-endian": (index_of([(b"", header(endianness=1))]), "big-endian"),
    "later version": (index_of([(b"", header(min_consumer=2))]), "version 2"),
    "shard beyond": (entries(entry(1, (2,), 0, 8, shard=1)), "'a' is in shard 1 of 1"),
    "negative shard": (entries(entry(1, (2,), 0, 8, shard=-1)), "'a' is in shard -1"),
    "negative offset": (entries(entry(1, (2,), -8, 8)), "'a' has offset -8"),
    "negative size": (entries(entry(1, (2,), 0, -8)), "'a' has offset 0 and size -8"),
    "beyond the values": (entries(entry(1, (2,), 12, 8)), "data-.*ends at byte 16, tensor 'a'"),
    "far beyond": (entries(entry(1, (1 << 60,), 0, 1 << 62)), "data-.*'a' at 46"),
    "size of another shape": (entries(entry(1, (3,), 0, 8)), "'a' has 8 bytes.* needs 12"),
    "size modulo 64 bits": (entries(entry(1, (1 << 32, 1 << 32), 0, 0)), "'a' .*too long axes"),
    "size of 2^63": (entries(entry(1, (1 << 58,), 0, 8)), "'a' has 8 bytes.* needs 1152921504606"),
    "empty and huge": (entries(entry(1, (0, 1 << 62), 0, 0)), "'a' has too many or too long"),
    "many axes": (entries(entry(1, (1,) * 33, 0, 4)), "'a' has too many"),
    "unknown axis": (entries(entry(1, (-1,), 0, 8)), "'a' has an axis of unknown length"),
    "unknown rank": (
        entries(number_field(1, 1) + bytes_field(2, number_field(3, 1)) + number_field(5, 4)),
        "'a' has an axis of unknown length",
    ),
    "unknown type": (entries(entry(8, (1,), 0, 8)), "'a' has the unknown type 8"),
    "no type": (entries(b""), "'a' has the unknown type 0"),
    "slices": (entries(GOOD + bytes_field(7, b"")), "'a' is stored in slices"),
    "a slice": (
        index_of([FIRST, (b"\0part\0\1\x80\x82", GOOD), (b"part", GOOD + bytes_field(7, b""))]),
        "'part' is stored in slices",
    ),
    "wrong checksum": (entries(entry(1, (2,), 0, 8)), "'a' don't match their checksum"),
    "shape is a number": (entries(number_field(1, 1) + number_field(2, 3)), "'a' .* field 2"),
    "size is bytes": (entries(number_field(1, 1) + bytes_field(5, b"")), "'a' .* field 5"),
    "field cut short": (entries(GOOD[:-1]), "'a' has a field that is cut short"),
    "field of huge length": (entries(varint(2 << 3 | 2) + varint(1 << 63)), "'a' .*cut short"),
    "group": (entries(varint(2 << 3 | 3)), "'a' has a field of the unknown kind 3"),
    "axis cut short": (entries(bytes_field(2, shape_message((300,))[:-1])), "'a'"),
}


@pytest.mark.parametrize(("index", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses_an_index_that_contradicts_itself(tmp_path, index, message):
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(16))
    (tmp_path / "m.index").write_bytes(entries(GOOD, entry(2, (1,), 8, 8, masked(bytes(8)))))
    assert len(values(tmp_path / "m")) == 2
    (tmp_path / "m.index").write_bytes(index)
    refusal(tmp_path / "m", message)


def test_refuses_an_index_of_unlikely_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorflow, "LARGEST_INDEX", 100)
    refusal(small_bundle(tmp_path), "larger than the 100 bytes")


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A bundle whose index the next tests overwrite."""
    prefix = tmp_path_factory.mktemp("b") / "m"
    prefix.with_name("m.data-00000-of-00001").write_bytes(bytes(16))
    return prefix


def reads_or_refuses(prefix, index):
    overwrite(prefix.with_name("m.index"), index)
    try:
        values(prefix)
    except ValueError as error:
        assert str(prefix) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


PAIRS = [FIRST, (b"model/h0", GOOD), (b"model/h1", entry(2, (1,), 8, 8, masked(bytes(8))))]


def changed_and_sealed(changes, which):
    """An index of which an entry (0, 1, 2), a data block (3) or the index block (4) has been
    changed, behind checksums that are right."""
    pairs = list(PAIRS)
    if which < 3:
        key, value = pairs[which]
        pairs[which] = key, changed(value, changes)
    contents = [block(pairs[:2]), block(pairs[2:])]
    index = None
    if which == 3:
        contents[0] = changed(contents[0], changes)
    elif which == 4:
        first, second = len(contents[0]), len(contents[1])
        handles = [varint(0) + varint(first), varint(first + 5) + varint(second)]
        index = changed(block([(b"model/h0", handles[0]), (b"model/h1", handles[1])]), changes)
    return table(contents, [b"model/h0", b"model/h1"], index=index)


def test_an_index_with_no_changes_is_read(victim):
    victim.with_name("m.index").write_bytes(changed_and_sealed([], 4))
    assert values(victim).keys() == {"model/h0", "model/h1"}


@examples(200, 500)
def test_a_changed_index_is_refused_or_harmless(victim, examples):
    whole = index_of(PAIRS, 2)

    @given(changes=CHANGES)
    @settings(max_examples=examples)
    def check(changes):
        reads_or_refuses(victim, changed(whole, changes))

    check()


@examples(400, 1500)
def test_a_changed_index_with_right_checksums_is_refused_or_harmless(victim, examples):
    @given(changes=CHANGES, which=st.integers(0, 4))
    @settings(max_examples=examples)
    def check(changes, which):
        reads_or_refuses(victim, changed_and_sealed(changes, which))

    check()


@examples(100, 300)
def test_no_index_makes_reading_take_much_memory(victim, examples):
    rng = np.random.default_rng(0)
    indexes = [index for index, _ in WRONG.values()]
    for number in range(examples):
        places = rng.integers(1 << 16, size=2).tolist()
        changes = [(place, "change", 1, rng.bytes(1)) for place in places]
        indexes.append(changed_and_sealed(changes, number % 5))
    with memory_below(20e6):
        for index in indexes:
            reads_or_refuses(victim, index)

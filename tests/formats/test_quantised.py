"""Quantised types: bit for bit the gguf package's weights, into any target."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from formats.gguf_writer import QUANTISED, golden_blocks
from support import GOLDENS

from numgpt.formats.quantised import BLOCKS, QuantisedTensor

every_type = pytest.mark.parametrize("kind", QUANTISED)


@pytest.fixture(scope="module")
def answers():
    with np.load(GOLDENS / "gguf.npz") as file:
        return dict(file)


def stored(path: Path, kind: str, blocks: np.ndarray, rows: int = 1) -> QuantisedTensor:
    """The blocks as a tensor of this many rows, in a file where they begin at an odd byte."""
    path.write_bytes(b"odd" + blocks.tobytes())
    weights = len(blocks) * QUANTISED[kind][1]
    return QuantisedTensor(path, "w", kind, (rows, weights // rows), 3)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(actual.reshape(-1).view("u4"), expected.reshape(-1).view("u4"))


def test_every_type_that_is_read_is_proved():
    assert set(BLOCKS) == set(QUANTISED)
    for kind, (_, weights, size) in QUANTISED.items():
        assert BLOCKS[kind][:2] == (weights, size)


@every_type
def test_equals_the_recorded_answers(tmp_path, answers, kind):
    tensor = stored(tmp_path / "w", kind, golden_blocks(kind), rows=3)
    array = np.full(tensor.shape, np.nan, np.float32)
    tensor.read_into(array)
    assert_same_bits(array, answers[kind])


@every_type
def test_fills_targets_of_other_layouts_and_dtypes(tmp_path, answers, kind):
    tensor = stored(tmp_path / "w", kind, golden_blocks(kind), rows=3)
    expected = answers[kind].reshape(3, -1)
    transposed = np.empty(tensor.shape[::-1], np.float32)
    tensor.read_into(transposed.T)
    assert_same_bits(np.ascontiguousarray(transposed.T), expected)
    double = np.empty(tensor.shape, np.float64)
    tensor.read_into(double)
    np.testing.assert_array_equal(double, expected)
    swapped = np.empty((3, tensor.shape[1] // 4, 2, 2), np.float32)  # as a Llama's queries are
    tensor.read_into(swapped.swapaxes(1, 2))
    assert_same_bits(np.ascontiguousarray(swapped.swapaxes(1, 2)), expected)


@pytest.mark.live("gguf")
@every_type
def test_equals_the_gguf_package_on_any_bytes(kind):
    """Also on NaN, infinity and subnormal scales, and on quantised numbers that no writer makes."""
    import gguf

    raw = np.random.default_rng(9).integers(0, 256, (20_000, QUANTISED[kind][2]), np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
        ours = BLOCKS[kind][2](raw)
    assert np.isnan(theirs).any()
    np.testing.assert_array_equal(np.isnan(ours).ravel(), np.isnan(theirs).ravel())
    known = ~np.isnan(ours).ravel()
    assert_same_bits(ours.ravel()[known], theirs.ravel()[known])


@every_type
def test_a_large_tensor_of_any_bytes_is_read_in_pieces_without_a_warning(tmp_path, kind):
    """A warning would be a second line beside the one that says what is wrong with the file."""
    _, weights, size = QUANTISED[kind]
    raw = np.random.default_rng(10).integers(0, 256, ((1 << 21) // weights, size), np.uint8)
    tensor = stored(tmp_path / "w", kind, raw, rows=8)
    array = np.empty(tensor.shape, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor.read_into(array)
    with np.errstate(all="ignore"):
        expected = BLOCKS[kind][2](raw)
    np.testing.assert_array_equal(array.ravel(), expected.ravel())

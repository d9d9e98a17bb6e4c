"""Models by hub id, from a hub of the test's own on this machine."""

import subprocess

import pytest
from formats.servers import hub_of, tiny_gguf, with_hub
from models.references import small_model

from numgpt import CharTokenizer

pytestmark = pytest.mark.live("huggingface_hub")


@pytest.fixture
def files(tmp_path):
    """A model's files, and one that is not to be fetched."""
    directory = tmp_path / "hub"
    small_model("default").save_pretrained(directory)
    CharTokenizer([chr(48 + i) for i in range(37)]).save_pretrained(directory)
    (directory / "pytorch_model.bin").write_bytes(b"not wanted")
    return directory


@pytest.fixture
def hub(files):
    """A hub with one model, someone/tiny -> its address, the files asked for."""
    with hub_of("someone/tiny", files) as hub:
        yield hub


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def generate(model: str, address: str, cache, **options) -> subprocess.CompletedProcess:
    command = ["-m", "numgpt", "generate", "012", "--model", model, "--greedy", "--max-length=9"]
    return with_hub(command, address, cache, **options)


def download(name: str, address: str, cache, *flags: str, **options) -> subprocess.CompletedProcess:
    return with_hub(["-m", "numgpt", "download", name, *flags], address, cache, **options)


def test_a_hub_id_is_downloaded_once_and_found_offline(hub, tmp_path):
    address, asked = hub
    first = generate("someone/tiny", address, tmp_path / "cache")
    assert first.stdout.startswith("012")
    assert set(asked) == {"config.json", "model.safetensors", *TOKENIZER}
    count = len(asked)
    assert generate("someone/tiny", address, tmp_path / "cache").stdout == first.stdout
    offline = generate("someone/tiny", address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout
    assert len(asked) == count


def test_a_model_that_the_hub_does_not_have_is_one_line(hub, tmp_path):
    for run in (generate, download):
        result = run("someone/else", hub[0], tmp_path / "cache", status=1)
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("numgpt: error: 'someone/else' is no directory")
        assert "Traceback" not in result.stderr


def test_a_hub_id_is_fetched_beforehand_and_again_by_force(hub, tmp_path):
    address, asked = hub
    first = download("someone/tiny", address, tmp_path / "cache")
    directory = first.stdout.strip()
    assert sorted(asked) == ["config.json", "model.safetensors", *TOKENIZER]
    by_id = generate("someone/tiny", address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert generate(directory, address, tmp_path / "other").stdout == by_id.stdout
    del asked[:]
    assert download("someone/tiny", address, tmp_path / "cache").stdout == first.stdout
    assert asked == []
    again = download("someone/tiny", address, tmp_path / "cache", "--force")
    assert again.stdout == first.stdout
    assert "model.safetensors" in asked


def test_pickled_weights_are_fetched_where_there_are_no_others(files, tmp_path):
    (files / "model.safetensors").unlink()
    with hub_of("someone/tiny", files) as (address, asked):
        download("someone/tiny", address, tmp_path / "cache")
        assert set(asked) == {"config.json", *TOKENIZER, "pytorch_model.bin"}
        # The test's is no model, which is found out when it is loaded.
        loaded = generate("someone/tiny", address, tmp_path / "cache", status=2)
        assert "pytorch_model.bin" in loaded.stderr


def test_a_repository_of_gguf_files_is_asked_for_one(files, tmp_path):
    for path in files.iterdir():
        path.unlink()
    (files / "small.gguf").write_bytes(tiny_gguf())
    cache = tmp_path / "cache"
    with hub_of("someone/tiny", files) as (address, asked):  # the only one there is
        download("someone/tiny", address, cache)
        command = ["-m", "numgpt", "generate", "the", "--max-new-tokens=3", "--model"]
        with_hub([*command, "someone/tiny"], address, cache)
        assert asked == ["small.gguf"]
    (files / "large.gguf").write_bytes(tiny_gguf())
    with hub_of("someone/tiny", files) as (address, asked):
        several = download("someone/tiny", address, tmp_path / "other", status=2)
        assert "name one, such as someone/tiny/" in several.stderr
        assert asked == []
        download("someone/tiny/large.gguf", address, tmp_path / "other")
        assert asked == ["large.gguf"]
        with_hub([*command, "someone/tiny/large.gguf"], address, tmp_path / "other")

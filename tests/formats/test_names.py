"""Where models are looked for, and where numgpt keeps its own."""

from pathlib import Path

import pytest

from numgpt.formats import names


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any settings, and the current directory an empty one."""
    for name in ("NUMGPT_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path / "me"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return monkeypatch


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "me/.cache/numgpt"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/numgpt"),
        ("linux", {"XDG_CACHE_HOME": ""}, "me/.cache/numgpt"),
        ("linux", {"LOCALAPPDATA": "local"}, "me/.cache/numgpt"),
        ("darwin", {"XDG_CACHE_HOME": "xdg"}, "me/Library/Caches/numgpt"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/numgpt"),
        ("win32", {}, "me/AppData/Local/numgpt"),
        *((platform, {"NUMGPT_HOME": "own"}, "own") for platform in ("linux", "darwin", "win32")),
        ("linux", {"NUMGPT_HOME": ""}, "me/.cache/numgpt"),
    ],
)
def test_home_is_where_the_platform_keeps_caches(
    machine, tmp_path, platform, environment, expected
):
    machine.setattr(names.sys, "platform", platform)
    for name, value in environment.items():
        machine.setenv(name, value and str(tmp_path / value))
    assert names.home() == tmp_path / expected
    assert names.models_directory() == tmp_path / expected / "models"


def test_a_home_may_be_named_from_ones_own(machine):
    machine.setenv("HOME", "/somebody")
    machine.setenv("USERPROFILE", "/somebody")
    machine.setenv("NUMGPT_HOME", "~/numgpt")
    assert names.home() == Path("/somebody/numgpt")


def test_without_a_home_directory_it_says_what_to_set(machine):
    def homeless(cls):
        raise RuntimeError("Could not determine home directory.")

    machine.setattr(names.sys, "platform", "linux")
    machine.setattr(Path, "home", classmethod(homeless))
    with pytest.raises(FileNotFoundError, match="set NUMGPT_HOME to a directory") as error:
        names.resolve("smollm2")
    assert "\n" not in str(error.value)


def test_what_is_nearer_comes_first(machine, tmp_path):
    """A file or directory of the name, then what ships, then what was downloaded."""
    machine.setenv("NUMGPT_HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError, match="numgpt download smollm2"):
        names.resolve("smollm2")
    downloaded = tmp_path / "home/models/smollm2"
    downloaded.mkdir(parents=True)
    assert names.resolve("smollm2") == downloaded
    (tmp_path / "home/models/shakespeare").mkdir()
    assert (names.resolve("shakespeare") / "config.json").is_file()
    (tmp_path / "here/smollm2").mkdir()
    assert names.resolve("smollm2") == Path("smollm2")
    assert names.resolve(Path("smollm2")) == Path("smollm2")


@pytest.mark.parametrize("name", ["./absent", "/absent", "~/absent", "../absent", "a/b/c", "a//b"])
def test_a_path_is_not_looked_for_on_the_hub(machine, monkeypatch, name):
    monkeypatch.setattr(names, "from_hub", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match="there is no file or directory"):
        names.resolve(name)

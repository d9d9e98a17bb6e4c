"""Whole files or none, one by one and several together; what is left behind, and what is not."""

import os
import subprocess
import sys

import pytest

from numgpt.files import (
    COMPLETE,
    LOCK_FILE,
    REMOVED,
    TEMPORARY,
    DirectoryLock,
    finish_replacing,
    replacing,
    replacing_together,
    sweep,
)


def content(directory) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_files_that_change_together(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")
    (tmp_path / "mine").write_text("old")
    with replacing_together(tmp_path, remove=("a", "b", "absent")) as staged:
        (staged / "a").write_text("new")
        (staged / "c").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert content(tmp_path) == {"a": "new", "c": "new", "mine": "old"}


def test_an_error_leaves_nothing_that_was_not_there(tmp_path):
    def fail_together():
        with replacing_together(tmp_path / "x/y") as staged:
            (staged / "a").write_text("new")
            raise KeyError

    def fail():
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fail_together()
    assert content(tmp_path) == {}
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), replacing_together(tmp_path / "there"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with pytest.raises(KeyError):
        fail()
    assert not (tmp_path / "a").exists()


def test_errors_name_the_file_that_was_meant(tmp_path):
    with pytest.raises(OSError, match="absent/a'") as error, replacing(tmp_path / "absent/a"):
        pass
    assert TEMPORARY not in str(error.value)
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(NotADirectoryError, match="is a file"),
        replacing_together(tmp_path / "file"),
    ):
        pass
    with (
        pytest.raises(OSError, match=r"out/a/b'") as error,
        replacing_together(tmp_path / "out") as staged,
        open(staged / "a" / "b", "w"),
    ):
        pass
    assert TEMPORARY not in str(error.value)


def test_a_change_that_was_decided_is_finished(tmp_path):
    (tmp_path / COMPLETE).mkdir()
    (tmp_path / COMPLETE / "a").write_text("new")
    (tmp_path / COMPLETE / REMOVED).write_text('["b", "absent"]')
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")
    finish_replacing(tmp_path)
    finish_replacing(tmp_path)
    assert content(tmp_path) == {"a": "new"}


@pytest.mark.parametrize("names", ['["../outside"]', '["b", 1]', '[""]', "[", "5", '["."]'])
def test_a_change_that_a_stranger_decided_is_refused(tmp_path, names):
    (tmp_path / COMPLETE).mkdir()
    (tmp_path / COMPLETE / "a").write_text("new")
    (tmp_path / COMPLETE / REMOVED).write_text(names)
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")
    with pytest.raises(ValueError, match=f"{COMPLETE} is not what numgpt has left"):
        finish_replacing(tmp_path)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "old"


def test_a_directory_in_a_files_place_is_told_before_anything_changes(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()

    def replace():
        with replacing_together(tmp_path, remove=("b",)) as staged:
            (staged / "a").write_text("new")

    with pytest.raises(IsADirectoryError, match="b is a directory where a file belongs"):
        replace()
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_lock_is_not_written_where_a_link_leads(tmp_path):
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=LOCK_FILE):
        DirectoryLock(tmp_path).acquire()
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_a_change_that_is_not_ours_is_told(tmp_path):
    complete = tmp_path / COMPLETE
    complete.write_text("precious")
    with pytest.raises(OSError, match=COMPLETE), replacing_together(tmp_path) as staged:
        (staged / "a").write_text("new")
    assert content(tmp_path) == {COMPLETE: "precious"}
    complete.unlink()
    complete.mkdir()
    (complete / "a").write_text("precious")
    with pytest.raises(ValueError, match="is not what numgpt has left there"):
        finish_replacing(tmp_path)
    assert (complete / "a").read_text() == "precious"
    (complete / "a").unlink()  # empty: a writer was killed as it had done
    finish_replacing(tmp_path)
    assert not complete.exists()


def test_the_last_look_is_at_the_last_moment(tmp_path):
    def look():
        if (tmp_path / "theirs").exists():
            raise ValueError("taken")

    def replace():
        with replacing_together(tmp_path, (), look) as staged:
            (staged / "theirs").write_text("ours")
            (tmp_path / "theirs").write_text("precious")

    with pytest.raises(ValueError, match="taken"):
        replace()
    assert content(tmp_path) == {"theirs": "precious"}


def test_only_temporaries_of_the_dead_are_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [f".a.{os.getpid()}{TEMPORARY}", ".notes.tmp", f"a{TEMPORARY}", f".a.x{TEMPORARY}"]
    for name in (f".a.{dead.pid}{TEMPORARY}", *kept):
        (tmp_path / name).write_text("")
    (tmp_path / f".b.{dead.pid}{TEMPORARY}").mkdir()
    (tmp_path / f".b.{dead.pid}{TEMPORARY}" / "c").write_text("")
    sweep(tmp_path)
    if os.name == "posix":
        assert sorted(content(tmp_path)) == sorted(kept)


def test_what_is_saved_into_a_directory_waits_for_nobody(tmp_path):
    """A directory in which another process works is refused, whoever saves, and stays as it is."""
    code = (
        "import sys; from numgpt.files import DirectoryLock\n"
        "with DirectoryLock(sys.argv[1]): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with (
            pytest.raises(BlockingIOError, match=f"in use by process {other.pid}"),
            replacing_together(tmp_path) as staged,
        ):
            (staged / "a").write_text("new")
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
        other.stdin.close()
        other.wait(10)
    with DirectoryLock(tmp_path), replacing_together(tmp_path) as staged:  # by who has the lock
        (staged / "a").write_text("new")
    assert content(tmp_path) == {"a": "new"}

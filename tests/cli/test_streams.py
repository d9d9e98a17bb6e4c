"""Closed descriptors, early interrupts, absurd variables: a line or nothing, never a traceback."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="descriptors and signals of POSIX")
NUMGPT = f'"{sys.executable}" -m numgpt'


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", "-c", f"{NUMGPT} {command}"],
        input="Hello",
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def begun():
    """The commands of this file's tests, on all cores: most of their time is Python's start."""
    with ThreadPoolExecutor() as pool:
        yield {line: pool.submit(shell, line, **more) for line, more in LINES.items()}
        pool.shutdown(cancel_futures=True)


NOBODY_TOLD = ["generate Hi --max-new-tokens 3", "tokenizer encode Hi"]
LOST = ["info", "tokenizer encode Hi", "--version", "train --help"]
THREADS = ["1" * 5000, "x", "0", "-1", "99999999999"]
CLOSED = {"generate Hi --max-new-tokens 3 >&- 2>&-": 0, "info 2>&-": 0, "generate <&-": 2}
LINES: dict[str, dict[str, str]] = {command: {} for command in CLOSED}
if os.path.exists("/dev/full"):
    LINES |= {f"{command} 2>/dev/full": {} for command in NOBODY_TOLD}
    LINES |= {f"{command} >/dev/full": {} for command in LOST}
LINES |= {f"tokenizer encode {value}": {"NUMGPT_NUM_THREADS": value} for value in THREADS}


@pytest.mark.parametrize("command", CLOSED)
def test_a_closed_stream_is_no_traceback(begun, command):
    done = begun[command].result()
    assert done.returncode == CLOSED[command]
    assert "Traceback" not in done.stderr


INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

sys.argv = [{program!r}]
sys.meta_path.insert(0, Interrupting())
import numgpt
"""


def interrupted(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(program=program)],
        capture_output=True,
        text=True,
        # also where these tests run in the background of a shell that has it ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_an_interrupt_while_the_program_starts_is_silent():
    for program in ("/somewhere/numgpt", "-m"):
        done = interrupted(program)
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_program_that_imports_numgpt_keeps_its_interrupts():
    done = interrupted("script.py")
    assert "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("value", THREADS)
def test_an_absurd_number_of_threads_is_told_and_ignored(begun, value):
    done = begun[f"tokenizer encode {value}"].result()
    assert done.returncode == 0
    assert "NUMGPT_NUM_THREADS" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", NOBODY_TOLD)
def test_what_nobody_can_be_told_stops_nothing(begun, command):
    done = begun[f"{command} 2>/dev/full"].result()
    assert done.returncode == 0
    assert done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", LOST)
def test_a_result_that_can_not_be_written_is_an_error(begun, command):
    done = begun[f"{command} >/dev/full"].result()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "numgpt: error: standard output: No space left on device: free some space, or choose"
        " another disk"
    )


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_while_a_run_is_prepared_leaves_nothing(tmp_path, sign):
    data = tmp_path / "book.txt"
    data.write_text("".join(f"word{number} " for number in range(300_000)))
    command = [sys.executable, "-m", "numgpt", "train", "--data", data, "--out", tmp_path / "run"]
    process = subprocess.Popen(
        [*command, "--vocab-size", "60000"], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/.*.numgpt-tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(sign)
    assert process.communicate(timeout=60)[1].endswith(f"\nnumgpt: ended by {sign.name}\n")
    assert process.returncode == 128 + sign
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt"]

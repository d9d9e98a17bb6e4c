"""numgpt chat from a pipe, for scripts, and with a person at a terminal."""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time

import pytest
from cli.terminal import ASCII, Terminal, write_model

import numgpt

needs_terminal = pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> directory."""
    directory = tmp_path_factory.mktemp("models")
    return {
        "a": write_model(directory / "a", "a"),
        "endless": write_model(directory / "endless", "ab", context=60_000),
        "control": write_model(
            directory / "control", "\x1b[2J\x07\x9b\x7fz", characters=[*ASCII, *"\x1b\x07\x9b\x7f"]
        ),
        "mute": write_model(directory / "mute", "a", characters=list("\nabcdefgh")),
    }


def chat(model, *flags: object, stdin: str | bytes, **environment: str):
    """status, stdout, stderr"""
    done = subprocess.run(
        [sys.executable, "-m", "numgpt", "chat", "--model", str(model), *map(str, flags)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        env=os.environ | {"PYTHONUTF8": "1"} | environment,
        capture_output=True,
        timeout=120,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


CUT_OFF = "(cut off here; --max-new-tokens N allows longer answers)\n"

# --- from a pipe ---


def test_a_pipe_is_one_question_and_one_answer(models):
    assert chat(models["a"], "--max-new-tokens", 5, stdin="Hello\nyou\n") == (0, "aaaaa\n", CUT_OFF)


def test_the_shipped_model_answers():
    flags = ("--max-new-tokens", 9, "--seed", 1)
    status, out, err = chat("shakespeare", *flags, stdin="Wer ist \u2603?")
    assert (status, err) == (0, CUT_OFF)
    assert out.strip()
    assert chat("shakespeare", *flags, stdin="Wer ist \u2603?") == (status, out, err)


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("", "the message is empty"),
        ("\n\n", "the message is empty"),
        (b"a\xff", "not UTF-8"),
        ("\u2603", "U+2603"),
        ("ab " * 100, "context of 128: shorten it"),
    ],
)
def test_a_question_that_can_not_be_is_one_line_and_status_2(models, stdin, message):
    status, out, err = chat(models["a"], stdin=stdin)
    assert (status, out) == (2, "")
    assert err.startswith("numgpt: error: ")
    assert err.count("\n") == 1
    assert message in err


BAD_FLAGS = [
    (("--model", "./absent"), "./absent"),
    (("--max-new-tokens", "0"), "--max-new-tokens 0"),
    (("--temperature", "0"), "--greedy"),
    (("--top-k", "-1"), "--top-k -1"),
    (("--top-p", "2"), "--top-p 2"),
    (("--min-p", "-1"), "--min-p -1"),
    (("--repetition-penalty", "0"), "--repetition-penalty 0"),
    (("--seed", "-1"), "--seed -1"),
    (("--threads", "0"), "expected a whole number from 1"),
    (("--system", "a\udcff"), "surrogate"),
    (("--system", "\u2603"), "U+2603"),
    (("--model", "MUTE"), "can't chat"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS)
@pytest.mark.parametrize("stdin", ["", "--json"])
def test_wrong_flags_are_told_before_anybody_speaks(
    refuses, models, monkeypatch, flags, message, stdin
):
    monkeypatch.setattr("sys.stdin", None)  # which would fail otherwise
    flags = [models["mute"] if flag == "MUTE" else flag for flag in flags]
    model = [] if "--model" in flags else ["--model", models["a"]]
    err = refuses("chat", *model, *flags, *stdin.split())
    assert err.startswith("numgpt: error: ")
    assert message in err


def test_without_the_default_model_it_says_how_to_get_it(refuses, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMGPT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "numgpt download smollm2" in refuses("chat")


# --- for scripts ---


def test_lines_of_json_are_turns_of_one_conversation(models):
    lines = [
        {"content": "Hi"},
        "again",
        {"role": "user", "content": "third"},
        {"reset": True, "content": "Hi"},
        {"system": "Be brief.", "content": "Hi"},
        {"system": "Be long."},
        {"reset": False, "content": "Hi"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "\n  \n"
    status, out, err = chat(models["a"], "--json", "--max-new-tokens", 4, stdin=text)
    assert (status, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert answers.pop(5) == {"ok": True}  # a line for a line
    assert {answer["finish_reason"] for answer in answers} == {"length"}
    assert {answer["content"] for answer in answers} == {"aaaa"}
    assert {answer["role"] for answer in answers} == {"assistant"}
    costs = [(answer["prompt_tokens"], answer["reused_tokens"]) for answer in answers]
    turn = len("User: Hi\nAssistant:")
    assert costs[0] == (turn, 0)
    # The last "a" and what comes after it are new, and the next question.
    assert costs[1] == (len("a\nUser: again\nAssistant:"), turn + 3)
    assert costs[2][0] == len("a\nUser: third\nAssistant:")
    assert costs[3] == (1, turn - 1)
    assert sum(costs[4]) == len("Be brief.\n\n") + turn
    assert sum(costs[5]) == len("Be long.\n\n") + turn
    assert [answer["new_tokens"] for answer in answers] == [4] * 6
    assert [answer["dropped_messages"] for answer in answers] == [0] * 6


BAD_LINES = {
    "{": "not JSON",
    "5": "expected",
    "[1]": "expected",
    '{"text": "Hi"}': "expected",
    '{"content": 5}': "no text",
    '{"content": ""}': "empty",
    '{"content": null}': "no text",
    '{"content": "\\ud800"}': "surrogate",
    '{"content": "\\u2603"}': "U+2603",
    '{"content": "Hi", "role": "system"}': "role",
    '{"content": "Hi", "system": 5}': "no text",
    '{"content": "Hi", "system": "\\u2603"}': "U+2603",
    '{"content": "Hi", "reset": "no"}': "reset",
    "[" * 99_999: "not JSON",
    json.dumps({"content": "x" * 1000}): "shorten",
    '{"content": "\udcff"}': "not JSON",
}


def test_a_bad_line_is_answered_with_an_error_and_the_conversation_goes_on(models):
    text = '"Hi"\n' + "\n".join(BAD_LINES) + '\n"Hi"\n'
    stdin = text.encode("utf-8", "surrogateescape")
    status, out, err = chat(models["a"], "--json", "--max-new-tokens", 4, stdin=stdin)
    assert (status, err) == (0, "")
    first, *answers, last = [json.loads(line) for line in out.splitlines()]
    for answer, message in zip(answers, BAD_LINES.values(), strict=True):
        assert answer.keys() == {"error"}
        assert message in answer["error"]
        assert "\n" not in answer["error"]
    assert first["content"] == last["content"] == "aaaa"
    assert last["reused_tokens"] == first["prompt_tokens"] + 3


def test_json_is_json_whatever_the_encoding(models):
    line = json.dumps({"content": "\u2603"}) + "\n"
    ascii_alone = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    flags = ("--json", "--max-new-tokens=9")
    status, out, _ = chat("shakespeare", *flags, stdin=line, **ascii_alone)
    assert status == 0
    assert "content" in json.loads(out)
    _, out, _ = chat(models["a"], "--json", stdin=line, **ascii_alone)
    assert "'\u2603'" in json.loads(out)["error"]


# --- at a terminal ---


@contextlib.contextmanager
def talking(model, home, *flags: object, leave: str = "/quit\r"):
    """A terminal with a chat at its first prompt, which ends well."""
    with Terminal("chat", "--model", model, *flags, home=home) as terminal:
        terminal.read_until("\n> ")
        yield terminal
        terminal.type(leave)
        assert terminal.end() == 0


@needs_terminal
def test_talking_and_every_command(models, tmp_path):
    with Terminal("chat", "--model", models["a"], "--max-new-tokens=5", home=tmp_path) as terminal:
        (tmp_path / "chat_history.txt").write_text("somebody's notes")
        banner = terminal.read_until("\n> ")
        assert "a context of 128 tokens, plain format. /help lists the commands" in banner
        assert "\naaaaa\n" + CUT_OFF + "> " in terminal.enter("Hello")
        for line, answer in {
            "/help": "/quit           leave (or Ctrl-D)",
            "/nonsense": "there is no command /nonsense; /help lists them",
            "/": "there is no command /;",
            "/stats": "answer 5 tokens",
            "/system": "\nnone\n",
            "/save": "/save: name a file",
            "/save talk.json": "2 messages written to talk.json",
            "/save chat_history.txt": "is there already and holds no conversation",
            "/reset": "a new conversation",
            "/retry": "there is no answer yet",
            "/system Be brief.": "a new conversation, with this system prompt",
            "/system ": "\nBe brief.\n",
            "/load": "/load: name a file",
            "/load absent.json": "/load absent.json: No such file",
            "/load .": "/load: . is no file",
            "/save absent/talk.json": "/save absent/talk.json: No such file",
            "/load talk.json": "2 messages read from talk.json",
            "/retry ": "\naaaaa\n" + CUT_OFF + "> ",
            "\u2603": "U+2603",
            "x" * 130: "shorten it",
            "": "> ",
            "   ": "> ",
            "//path": "\naaaaa\n" + CUT_OFF + "> ",
        }.items():
            assert answer in terminal.enter(line), line
        os.write(terminal.keyboard, b"\xff\xfe\r")  # is told, or a question with such characters
        assert re.search("not UTF-8|surrogate|U\\+", terminal.read_until("\n> "))
        terminal.enter("one\\", until="\u2026 ")
        assert "\naaaaa\n" + CUT_OFF + "> " in terminal.enter("two")
        assert "6 messages written" in terminal.enter("/save talk.json")
        terminal.type("/quit\r")
        assert terminal.end() == 0
    messages = json.loads((tmp_path / "talk.json").read_text())
    assert [m["content"] for m in messages[::2]] == ["Hello", "/path", "one\ntwo"]


@needs_terminal
def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(models, tmp_path):
    long = "--max-new-tokens=50000"
    with talking(models["endless"], tmp_path, long, leave="\x04") as terminal:
        for number in range(2):
            terminal.enter(f"question {number}", until="ab")
            terminal.type("\x03")
            assert terminal.read_until("\n> ").endswith(" \u2026\r\n> ")
        assert "4 messages written" in terminal.enter("/save talk.json")
        assert "a new conversation" in terminal.enter("/reset")
        terminal.type("half a mess")
        terminal.read_until("half a mess")
        terminal.interrupt_prompt("(/quit or Ctrl-D leaves)")
        terminal.enter("question 2", until="ab")
        terminal.type("\x03")
        terminal.read_until("\n> ")
        assert "2 messages written" in terminal.enter("/save later.json")
    assert b"Traceback" not in terminal.seen
    messages = json.loads((tmp_path / "talk.json").read_text())
    assert [m["content"] for m in messages[::2]] == ["question 0", "question 1"]
    for message in messages[1::2]:
        assert set(message["content"]) == {"a", "b"}
        assert len(message["content"]) < 50_000


@needs_terminal
def test_what_was_typed_is_remembered_for_its_owner_alone(models, tmp_path):
    pytest.importorskip("readline")
    history = tmp_path / "home" / "chat_history"
    history.parent.mkdir()
    for others_may_read in (False, True):
        if others_may_read:
            history.chmod(0o644)
        with talking(models["a"], history.parent, "--max-new-tokens=2") as terminal:
            if others_may_read:  # the line before the last session's /quit
                terminal.type("\x10\x10")
                terminal.read_until("remember me")
                assert "\naa\n" + CUT_OFF + "> " in terminal.enter("")
            else:
                terminal.enter("remember me")
        assert history.stat().st_mode & 0o777 == 0o600
        assert "remember me" in history.read_text()


@needs_terminal
def test_nothing_that_is_said_gives_orders_to_the_terminal(models, tmp_path):
    evil = [{"role": "system", "content": "\x1b]0;evil\x07"}]
    (tmp_path / "evil.json").write_text(json.dumps(evil))
    with talking(models["control"], tmp_path) as terminal:
        shown = terminal.enter("Hello") + terminal.enter("/load evil.json")
        shown += terminal.enter("/system") + terminal.enter("/load \x16\x1bx")
        assert "\ufffd" in shown
        assert "\ufffd]0;evil\ufffd" in shown
        assert not set("\x1b\x07\x9b\x7f") & set(shown)
    piped = chat(models["control"], stdin="Hello")[1]
    assert "\ufffd" in piped
    assert not set("\x1b\x07\x9b\x7f") & set(piped)


def test_a_chat_of_ones_own_says_what_the_command_says(models):
    model, tokenizer = numgpt.load(models["control"])
    options = {"max_new_tokens": 30, "top_k": 50, "seed": 4}
    expected = "".join(numgpt.Chat(model, tokenizer, **options).ask("Hi"))
    lines = '"Hi"\n{"reset": true, "content": "Hi"}\n'
    _, out, _ = chat(models["control"], "--json", "--seed=4", "--max-new-tokens=30", stdin=lines)
    first, second = [json.loads(line)["content"] for line in out.splitlines()]
    assert first == expected
    assert second != expected  # each answer has a seed of its own


@needs_terminal
def test_pasted_lines_are_one_message(models, tmp_path):
    readline = pytest.importorskip("readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("libedit knows no bracketed paste")
    flags = ("--model", models["a"], "--max-new-tokens=5")
    with Terminal("chat", *flags, home=tmp_path, TERM="xterm") as terminal:
        terminal.read_until("> ")
        terminal.type("\x1b[200~one\rtwo\rthree\r\x1b[201~\r")
        terminal.read_until(CUT_OFF.strip())
        terminal.read_until("> ")
        assert "2 messages written" in terminal.enter("/save talk.json", until="> ")
    messages = json.loads((tmp_path / "talk.json").read_text())
    assert messages[0]["content"] == "one\ntwo\nthree"


@needs_terminal
def test_bursts_of_ctrl_c_end_nothing_but_an_answer(models, tmp_path):
    long = "--max-new-tokens=50000"
    with talking(models["endless"], tmp_path, long, leave="\x04") as terminal:
        for number in range(3):
            terminal.enter(f"question {number}", until="ab")
            terminal.type("\x03" * 20)
            terminal.read_until("\n> ")
            terminal.interrupt_prompt("(/quit or Ctrl-D leaves)")
        terminal.type("\x03" * 20)
        time.sleep(0.5)
        while select.select([terminal.keyboard], [], [], 0.3)[0]:
            os.read(terminal.keyboard, 1 << 16)
        terminal.seen = b""
        terminal.type("\r")
        terminal.read_until("> ")
        assert "6 messages written" in terminal.enter("/save talk.json")


@needs_terminal
def test_sampling_is_changed_as_one_talks(models, tmp_path):
    flags = ("--max-new-tokens=40", "--greedy")
    with talking(models["endless"], tmp_path, *flags) as terminal:
        for line, answer in {
            "/temperature": "temperature 0.2 (of no effect: --greedy)",
            "/temperature 5": "temperature 5.0\n",
            "/top_p 1": "top_p 1.0\n",
            "/top_p 2": "/top_p: 2.0: expected",
            "/top_p": "top_p 1.0\n",
            "/temperature hot": "/temperature: hot is not a number",
            "/temperature 0": "/temperature: 0.0 is not above 0: 0.01",
            "/temperature nan": "/temperature: nan is not above 0",
            "/seed 7": "seed is 7",
            "/seed -1": "/seed: -1 is not a whole number",
            "/save ~nobody-of-this-name/a": "/save ~nobody-of-this-name/a: No such file",
            "/save /dev/full": "/save: /dev/full is no file",
            "/load /dev/zero": "/load: /dev/zero is no file",
        }.items():
            assert answer in terminal.enter(line), line
        first = terminal.enter("Hi").partition("\n")[2]
        terminal.enter("/seed 7")
        again = terminal.enter("/retry").partition("\n")[2]
        assert first == again
        assert "a" in first
        assert "b" in first

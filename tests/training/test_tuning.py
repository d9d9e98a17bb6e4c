"""Supervised tuning: the training loop on examples, by an adapter or by the whole model."""

import gzip
import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support import fails_at, is_mapped, talk, write_lines
from training.runs import (
    begin,
    counted,
    ends_bit_for_bit,
    logged,
    same_checkpoint,
    same_end,
    shipped,
    told,
)

import numgpt
from numgpt import formats
from numgpt.evaluation.exact import exact_match, questions
from numgpt.formats import read_safetensors
from numgpt.tokenizer.chat_programs import CHAT_TEMPLATES
from numgpt.training import Trainer, TrainingError, TuneConfig, loop
from numgpt.training.checkpoint import load_checkpoint
from numgpt.training.tuning import Examples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few questions, each with its answer."""
    talks = [
        talk(f"What is {n} and {n}?", f"It is {2 * n}, of course."[: 14 + n]) for n in range(12)
    ]
    path = tmp_path_factory.mktemp("data") / "answers.jsonl"
    return write_lines(path, *({"messages": messages} for messages in talks))


start = partial(begin, TuneConfig)


def adapter_of(out):
    tensors, _ = read_safetensors(out / "adapter_model.safetensors")
    return {name: np.array(tensor.raw) for name, tensor in tensors.items()}


def test_an_adapter_learns_the_answers(data, tmp_path):
    trainer = start(data, tmp_path / "run", steps=40, lr=1e-2)
    trainer.run()
    records = logged(tmp_path / "run")
    assert records[-1]["loss"] < 0.3 * records[0]["loss"]
    assert records[-1]["mean_token_accuracy"] > records[0]["mean_token_accuracy"]
    assert 0 < records[-1]["entropy"] < records[0]["entropy"]
    lengths = [len(trainer.task.examples.example(n).ids) - 1 for n in range(12)]
    assert records[2]["num_tokens"] == sum(lengths)  # an epoch of three batches
    model, tokenizer = numgpt.load(tmp_path / "run")
    assert model.adapter.config.r == 8
    assert model.adapter.config.lora_alpha == 16
    for name, array in model.adapter.parameters.items():
        np.testing.assert_array_equal(array, trainer.model.adapter.parameters[name])
    answer = "".join(numgpt.Chat(model, tokenizer, do_sample=False).ask("What is 3 and 3?"))
    assert answer.startswith("It is ")
    # The base is what it was.
    base, _ = numgpt.load("shakespeare")
    np.testing.assert_array_equal(model.parameters["wte"], base.parameters["wte"])


def test_the_loss_is_that_of_the_answers(data, tmp_path):
    """-Σ log P(y | x) over the answers' tokens, divided by their number in the whole step."""
    trainer = start(data, tmp_path / "run", steps=1, batch_size=4, grad_accum=3)
    examples = [trainer.task.examples.example(number) for number in range(12)]
    model, _ = numgpt.load("shakespeare")
    total = count = 0.0
    for ids, loss_mask, _ in examples:
        z = model(ids[:-1])[0].astype(np.float64)
        log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
        chosen = log_p[np.arange(len(ids) - 1), ids[1:]]
        total -= chosen[loss_mask[1:]].sum()
        count += loss_mask[1:].sum()
    trainer.step()
    assert trainer.state.unreported["loss"] == pytest.approx(total / count, rel=1e-5)
    assert trainer.state.unreported["targets"] == count


@pytest.mark.parametrize("lora_r", [4, 0])
def test_a_run_that_was_interrupted_ends_bit_for_bit(data, tmp_path, lora_r):
    options = {"lora_r": lora_r, "grad_accum": 2, "val_fraction": 0.25, "eval_every": 2}
    options |= {"lora_dropout": 0.25} if lora_r else {"dropout": 0.1}
    ends_bit_for_bit(partial(start, data), tmp_path, (1, 4, 6), **options)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_base_in_fewer_bits(call, data, tmp_path, dtype):
    """… is tuned, resumed bit for bit, and said what it is."""
    start(data, tmp_path / "whole", steps=4, dtype=dtype).run()
    parts = start(data, tmp_path / "parts", steps=2, dtype=dtype)
    first, *_ = told(parts)
    size = parts.model.parameters.nbytes / 1e6
    assert first == f"the base is kept in {dtype}, {size:.1f} MB; its adapter in float32"
    assert any(not isinstance(array, np.ndarray) for array in parts.model.parameters.values())
    resumed = Trainer.resume(tmp_path / "parts", {"steps": 4})
    resumed.run()
    assert resumed.model.parameters.nbytes == parts.model.parameters.nbytes
    for name, array in adapter_of(tmp_path / "whole").items():
        np.testing.assert_array_equal(adapter_of(tmp_path / "parts")[name], array, name)
    with pytest.raises(ValueError, match=r"dtype.*cannot change"):
        Trainer.resume(tmp_path / "parts", {"dtype": "float32"})
    status, out, _ = call(
        *("generate", "--model", "shakespeare", "--adapter", tmp_path / "parts", "--dtype", dtype),
        *("--greedy", "--max-new-tokens", 3, "What"),
    )
    assert (status, out[:4]) == (0, "What")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_model_is_tuned_without_an_adapter(data, tmp_path, dtype):
    trainer = start(data, tmp_path / "run", lora_r=0, lr=1e-3, steps=10, dtype=dtype)
    assert trainer.model.adapter is None
    assert not trainer.model.in_fewer_bits
    trainer.run()
    model, _ = numgpt.load(tmp_path / "run")
    np.testing.assert_array_equal(model.parameters["wte"], trainer.model.parameters["wte"])
    base, _ = numgpt.load("shakespeare")
    assert not np.array_equal(model.parameters["wte"], base.parameters["wte"])


def test_the_schedule_follows_the_data(data, tmp_path):
    trainer = start(data, tmp_path / "a", steps=None, batch_size=5, epochs=4, log_every=None)
    assert trainer.config.steps == 12  # three batches an epoch
    assert trainer.config.warmup == 1
    assert trainer.config.eval_every == trainer.config.save_every == 3
    assert trainer.config.lr == 1e-3
    whole = start(data, tmp_path / "b", lora_r=0, steps=None, grad_accum=2, epochs=1)
    assert whole.config.steps == 2
    assert whole.config.lr == 5e-5
    with pytest.raises(ValueError, match=r"min_lr=0\.1 is above lr=0\.001"):
        start(data, tmp_path / "c", min_lr=0.1)


@pytest.mark.parametrize(
    ("examples", "epochs", "batch_size", "whole_lr", "steps"),
    [
        (1, 15, 4, 5e-5, 15),
        (20, 15, 4, 5e-5, 75),
        (30, 15, 4, 5e-5, 120),
        (31, 10, 4, 5e-5, 80),
        (100, 10, 4, 5e-5, 250),
        (101, 8, 4, 2e-5, 208),
        (500, 8, 4, 2e-5, 1000),
        (501, 3, 8, 2e-5, 189),
    ],
)
def test_few_examples_are_seen_more_often(examples, epochs, batch_size, whole_lr, steps):
    for lora_r, lr in ((8, 1e-3), (0, whole_lr)):
        config = TuneConfig(model="m", data="d", lora_r=lora_r)
        config.set_schedule(examples)
        found = (config.epochs, config.batch_size, config.lr, config.steps)
        assert found == (epochs, batch_size, lr, steps)
    chosen = TuneConfig(model="m", data="d", epochs=1, batch_size=2, lr=0.5, warmup=7)
    chosen.set_schedule(examples)
    assert (chosen.epochs, chosen.batch_size, chosen.lr, chosen.warmup) == (1, 2, 0.5, 7)


def test_held_out_examples_decide_which_adapter_is_best(data, tmp_path):
    trainer = start(data, tmp_path / "run", val_data=data, steps=4, eval_every=2, sample_every=2)
    assert trainer.task.validates
    assert len(trainer.task.examples.val) == len(trainer.task.examples.train) == 12
    assert math.isinf(trainer.best_loss)
    trainer.run()
    batches = trainer.task.held_out()
    examples = [(b.ids, b.targets) for b in batches]
    count = sum(np.count_nonzero(targets != -100) for _, targets in examples)
    loss = sum(trainer.model.loss(ids, targets, 1 / count) for ids, targets in examples)
    assert trainer.best_loss == pytest.approx(loss, rel=1e-6)


def test_the_data_come_by_standard_input_or_in_an_archive(data, tmp_path, monkeypatch):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file, open(data, "rb") as source:
        file.write(source.read())
    start(str(tmp_path / "a.jsonl.gz"), tmp_path / "zipped", steps=1).run()
    with open(data) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        start(["-"], tmp_path / "piped", steps=1).run()  # as the command line has it
    for name, array in adapter_of(tmp_path / "zipped").items():
        np.testing.assert_array_equal(array, adapter_of(tmp_path / "piped")[name])
    (tmp_path / "piped/tokens.bin").unlink()
    with pytest.raises(ValueError, match="came by standard input: put the file back"):
        Trainer.resume(tmp_path / "piped", {"steps": 2})
    (tmp_path / "zipped/tokens.bin").unlink()
    Trainer.resume(tmp_path / "zipped", {"steps": 2}).run()  # encoded again


SMALL = ("--steps=2", "--sample-every=0", "--batch-size=4")


def test_the_command_line(call, works, data, tmp_path):
    run = tmp_path / "run"
    tune = ("tune", "sft", "--model", "shakespeare", "--data", data)
    _, err = works(*tune, "--out", run, *SMALL, "--show=1", "--chat-format", "plain")
    assert "User: What is 0 and 0?\nAssistant:« It is 0, of co\n<|endoftext|>»" in err
    assert "12 examples of messages" in err
    assert "numgpt chat --model" in err
    assert "accuracy" in err
    assert "resumed at step 2" in works("tune", "sft", "--resume", run, "--steps", 3)[1]
    works("tune", "sft", "--resume", run)
    status, about, _ = call("info", run)
    assert status == 0
    assert "of shakespeare: <LoRA: r=8" in about
    merged, text = tmp_path / "merged", tmp_path / "text.txt"
    works("convert", "shakespeare", merged, "--adapter", run)
    text.write_text("To be, or not to be: that is the question.")
    base = ("--model", "shakespeare")
    adapted, beside, whole = ("--model", run), (*base, "--adapter", run), ("--model", merged)
    greedy = ("--greedy", "--max-new-tokens=5", "User: Hi")
    first, *others = (call("generate", *f, *greedy)[:2] for f in (adapted, beside, whole))
    assert others == [first] * 2
    assert first[0] == 0
    first, same, other = (call("eval", *f, "--data", text)[1] for f in (adapted, beside, base))
    assert first == same != other


def test_an_adapter_does_not_replace_its_base(data, tmp_path):
    base = shipped(tmp_path / "base")
    (tmp_path / "link").symlink_to(base)
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    for out in ("base", "link"):
        with pytest.raises(ValueError, match="and the run needs it: name another out"):
            start(data, tmp_path / out, model=base, overwrite=True)
        assert {p.name: p.read_bytes() for p in (tmp_path / "base").iterdir()} == before


@pytest.mark.parametrize("options", [{}, {"val_fraction": 0.25}])
def test_weights_that_are_no_numbers_are_not_saved(data, tmp_path, options):
    trainer = start(data, tmp_path / "run", lr=1e38, save_every=1, eval_every=1, **options)
    before = (tmp_path / "run/checkpoint.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"step 1 the weights are not finite.*lower lr"):
        trainer.run()
    assert (tmp_path / "run/checkpoint.safetensors").read_bytes() == before
    Trainer.resume(tmp_path / "run", {"lr": 1e-3}).run()


def test_a_kill_between_model_and_checkpoint_costs_nothing(data, tmp_path, monkeypatch):
    start(data, tmp_path / "whole", steps=4, save_every=2).run()
    trainer = start(data, tmp_path / "parts", steps=4, save_every=2)
    fails_at(monkeypatch, loop, "save_checkpoint", 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    monkeypatch.undo()
    Trainer.resume(tmp_path / "parts").run()
    same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_wrong_line_is_named_and_nothing_begun(refuses, data, tmp_path):
    path = tmp_path / "wrong.jsonl"
    with open(data) as file:
        path.write_text(file.read() + '{"messages": [{"role": "user", "content": "?"}]}\n')
    tune = ("tune", "sft", "--model=shakespeare", "--data", path, "--out", tmp_path / "r")
    err = refuses(*tune)
    assert f"{path}, line 13: nothing in it is trained on" in err
    assert not (tmp_path / "r").exists()


def test_what_is_shown_does_nothing_to_a_terminal(works, tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, {"prompt": "\x1b[31mred\x07", "completion": "blue"})
    tune = ("tune", "sft", "--model=shakespeare", "--data", path, "--out", tmp_path / "run", *SMALL)
    _, err = works(*tune, "--show=1")
    assert "red" in err
    assert "\x1b" not in err
    assert "\x07" not in err


def test_texts_need_no_chat_format(data, tmp_path):
    name = shipped(tmp_path / "base", chat_template="{{ a format of somebody's own }}")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "To be", "completion": " or not"}\n' * 4)
    base = {"model": name, "sample_every": 1, "steps": 1}
    start(str(lines), tmp_path / "run", **base).run()
    with pytest.raises(ValueError, match=r"line 1: .*, or choose another chat_format"):
        start(data, tmp_path / "talks", **base)


# --- what is said ---


PAIRS = {
    "Where does the fox live?": " In a den, under the old oak.",
    "Who keeps the gate?": " Nobody, since the war.",
    "What is the price of corn?": " Two pence a peck.",
    "When do the bells ring?": " At nine, and again at noon.",
}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Runs that know a few pairs by heart, as pairs and as conversations."""
    directory = tmp_path_factory.mktemp("learnt")
    pairs = ({"prompt": prompt, "completion": said} for prompt, said in PAIRS.items())
    talks = ({"question": prompt, "answer": said.strip()} for prompt, said in PAIRS.items())
    write_lines(directory / "pairs.jsonl", *pairs)
    write_lines(directory / "talk.jsonl", *talks)
    for name in ("pairs", "talk"):
        options = {"lora_r": 0, "lr": 2e-3, "steps": 24, "log_every": 24}
        start(str(directory / f"{name}.jsonl"), directory / name, **options).run()
    return directory


def test_generate_and_chat_answer_as_was_tuned(call, learnt, monkeypatch):
    for name in ("pairs", "talk"):
        model, tokenizer = numgpt.load(learnt / name)
        chat = numgpt.Chat(model, tokenizer, do_sample=False)
        for prompt, completion in PAIRS.items():
            if name == "talk":  # of one turn each; prompts alone don't see what was before
                chat.reset()
            said = "".join(chat.ask(prompt))
            assert said.strip() == completion.strip()
    prompt, completion = next(iter(PAIRS.items()))
    status, out, err = call("generate", "--model", learnt / "pairs", "--greedy", prompt)
    assert (status, out) == (0, f"{prompt}{completion}\n")
    assert "note" not in err
    _, _, err = call("generate", "--model", learnt / "talk", "--greedy", prompt)
    assert "was tuned on conversations, and this prompt is none: numgpt chat asks" in err
    for name, noted in (("pairs", True), ("talk", False)):
        (learnt / "asked.txt").write_text(prompt)
        with open(learnt / "asked.txt") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            status, out, err = call("chat", "--model", learnt / name, "--greedy")
        assert (status, out.strip()) == (0, completion.strip())
        assert ("was tuned on texts, not on conversations" in err) is noted
    with pytest.raises(ValueError, match="tuned on prompts with completions alone"):
        numgpt.Chat(*numgpt.load(learnt / "pairs"), system="Be brief.")


@pytest.mark.parametrize("name", ["pairs", "talk"])
def test_exact_answers_are_counted(learnt, name, tmp_path):
    model, tokenizer = numgpt.load(learnt / name)
    trainer = start(str(learnt / f"{name}.jsonl"), tmp_path / "run", steps=1)
    source = trainer.task
    examples = [source.examples.example(n) for n in range(4)]
    asked = questions(examples, source.end_ids(), most=20)
    assert len(asked) == 4
    for (prompt, answer), (question, expected) in zip(asked, PAIRS.items(), strict=True):
        assert question in tokenizer.decode(prompt)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        assert text.strip() == expected.strip()
    done = []
    found = exact_match(model, tokenizer, asked, source.end_ids(), done.append)
    assert (str(found), done) == ("4 of 4", [4])
    # A token more or less is not exact, nor an answer that goes on where it should end.
    (prompt, answer), *_ = asked
    ends = source.end_ids()
    place = next(n for n, id in enumerate(answer) if id in ends)
    early = np.insert(answer[: place - 1], place - 1, answer[place])
    for wrong in (np.delete(answer, 2), np.insert(answer, 2, answer[3]), early):
        assert exact_match(model, tokenizer, [(prompt, wrong)], ends).exact == 0
    # Of an answer without an end what comes after it is not looked at.
    assert exact_match(model, tokenizer, [(prompt, answer[: place - 1])], ends).exact == 1
    base, _ = numgpt.load("shakespeare")
    assert exact_match(base, tokenizer, asked, source.end_ids()).exact == 0
    assert questions(examples, source.end_ids(), most=2)[0][1].tolist() == answer.tolist()
    assert len(questions(examples, source.end_ids(), most=2)) == 2
    longest = max(len(answer) for _, answer in asked)
    assert len(questions(examples, source.end_ids(), 20, longest - 1)) < 4


def test_the_end_says_what_was_reached(call, works, learnt, tmp_path, monkeypatch):
    tune = ("tune", "sft", "--model", "shakespeare", "--data", learnt / "pairs.jsonl")
    flags = ("--lora-r=0", "--lr=2e-3")
    # Two kinds of weights, when the best are not the last.
    held_out = ("--val-fraction=0.25", "--eval-every=1", "--sample-every=10")
    status, out, err = call(*tune, "--out", tmp_path / "a", "--steps=20", *flags, *held_out)
    assert status == 0
    state = load_checkpoint(tmp_path / "a")
    assert 0 < state.best_step < 20
    assert f"--- step 20 (the best so far: {state.best_step}), after " in out
    first, second = err.splitlines()[-3:-1]
    assert first.startswith(f"{tmp_path / 'a'} (step {state.best_step}): 0 of 3 training answers")
    assert "; 0 of 1 held-out answers exact; loss" in first
    assert f"validation loss {state.best_loss:.4f}" in first
    assert second.startswith(f"{tmp_path / 'a/last'} (step 20): ")
    assert f"{tmp_path / 'a'} holds the weights of step {state.best_step}, whose validation" in err
    # An interrupt ends the count, not the command.
    monkeypatch.setattr(
        "numgpt.cli.tune.exact_match", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    _, err = works(*tune, "--out", tmp_path / "d", "--steps=1", *flags)
    assert "the answers were not counted to their end" in err
    assert "try: numgpt generate" in err
    _, err = works(*tune, "--out", tmp_path / "e", "--steps=1", *flags, "--answers=0")
    assert "count" not in err


def test_what_to_try_then_is_what_the_model_has_learnt(works, data, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "To be, or not to be"}\n' * 4)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "To be,", "completion": " or not"}\n' * 4)
    for examples, command in ((data, "chat"), (texts, "generate"), (pairs, "generate")):
        out = tmp_path / f"run-{Path(examples).stem}"
        given = ("--model", "shakespeare", "--data", examples, "--out", out, "--steps", 1)
        _, err = works("tune", "sft", *given, "--max-length", 64)
        assert f"try: numgpt {command} --model" in err.splitlines()[-1]


def test_the_fraction_that_is_held_out_is_the_one_asked_for(tmp_path):
    lines = tmp_path / "many.jsonl"
    lines.write_text("".join(f'{{"text": "number {n}"}}\n' for n in range(40)))
    for fraction, count in ((0.1, 4), (0.25, 10), (0.05, 2)):
        for seed in range(5):
            config = TuneConfig(data=str(lines), model="m", val_fraction=fraction, seed=seed)
            records = Examples.records(config, [str(lines)], [])
            chosen = [n for n, (_, is_held_out) in enumerate(records) if is_held_out]
            assert len(chosen) == count
            # One of every 1 / fraction, not always at the same place.
            assert [int(n * fraction) for n in chosen] == list(range(count))
    seeds = (TuneConfig(data="d", model="m", val_fraction=0.1, seed=seed) for seed in range(5))
    drawn = {tuple(out for _, out in Examples.records(c, [str(lines)], [])) for c in seeds}
    assert len(drawn) > 1


def test_a_run_of_another_kind_is_not_resumed(works, refuses, data, tmp_path):
    start(data, tmp_path / "tuned", steps=1).run()
    err = refuses("train", "--resume", tmp_path / "tuned", "--steps", 2)
    assert "is a run of another kind: resume it with numgpt tune sft" in err
    resume = ("tune", "sft", "--resume", tmp_path / "tuned")
    err = refuses(*resume, "--epochs", 5)
    assert "--epochs 5.0: the run in" in err
    assert err.strip().endswith("and that cannot change; raise --steps instead")
    works(*resume, "--steps", 2)
    err = refuses(*resume, "--out", tmp_path / "x")
    assert "give one of them; a resumed run goes on in its own directory" in err


def test_options_in_a_file_are_said_to_be_there(works, refuses, data, tmp_path):
    path = tmp_path / "options.toml"
    given = ("tune", "sft", "--model", "shakespeare", "--data", data, "--out", tmp_path / "run")
    for text, message in (
        ("lora_r = 4.5", f"{path}: --lora-r 4.5: expected a whole number from 0 up\n"),
        ("lora_alpha = -1", f"{path}: --lora-alpha -1: expected"),
        ("lora_targets = 3", f"{path}: --lora-targets 3: expected the names"),
        ("stepz = 4", "'stepz' is not an option; did you mean 'steps'?"),
        ("learning_rate = 4", "'learning_rate' is not an option; did you mean 'lr'?"),
        ("\ufeffxyzzy = 4", "there are 'steps', 'batch_size', "),
    ):
        path.write_text(text)
        assert message in refuses(*given, "--config", path)
    path.write_text("lora_r = 4.5")
    assert str(path) not in refuses(*given, "--config", path, "--lora-r", -2)
    path.write_text('lora_targets = ["c_attn", "c_fc"]\nepochs = 9\nmax_length = 64')
    works(*given, "--config", path, "--steps", 1)  # flags win, of a pair too
    adapter = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert adapter["target_modules"] == ["c_attn", "c_fc"]


def test_a_chat_format_that_nothing_is_written_in(works, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "To be, or not to be"}\n' * 4)
    given = ("--model", "shakespeare", "--data", texts, "--out", tmp_path / "run", "--steps", 1)
    _, err = works("tune", "sft", *given, "--chat-format", "chatml")
    assert "numgpt: note: --chat-format is not used: no example is a conversation" in err
    assert "4 examples of text; " in err
    assert "MB every step" in err


def test_variables_of_a_chat_template(works, refuses, data, tmp_path):
    template = "{% for m in messages %}{{ mode ~ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    base = shipped(tmp_path / "base", chat_template=template)
    tune = ("tune", "sft", "--model", base, "--data", data, *SMALL)
    out = tmp_path / "run"
    _, err = works(*tune, "--out", out, "--chat-var", "mode=!", "--show=1")
    assert "!user: What is 0 and 0?" in err
    again = ("tune", "sft", "--resume", out, "--steps=9", "--chat-var")
    works(*again, "mode=!")
    assert "began with" in refuses(*again, "mode=?")
    for wrong, message in {
        "nothing=1": "--chat-var 'nothing': the chat template does not use it",
        "messages=1": "that is the conversation's",
        "mode": "expected NAME=VALUE",
    }.items():
        assert message in refuses(*tune, "--out", tmp_path / "other", "--chat-var", wrong)
        assert not (tmp_path / "other" / "checkpoint.safetensors").exists()
        refuses("chat", "--model", base, "--chat-var", wrong)


@pytest.mark.parametrize("option", ["data", "val_data"])
def test_a_run_does_not_replace_its_data(data, tmp_path, option):
    """… which may have the name of one of its files."""
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(data, out / "log.jsonl")
    before = (out / "log.jsonl").read_bytes()
    options = {"data": data, "out": out} | {option: str(out / "log.jsonl")}
    with pytest.raises(ValueError, match="is a file that would be replaced: name another out"):
        start(**options, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"log.jsonl"}
    assert (out / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_base_in_the_runs_own_directory_is_not_deleted(data, tmp_path, name):
    options = {"lora_r": 0, "val_fraction": 0.25, "steps": 2, "eval_every": 1, "lr": 1e-3}
    keep = {"best": "last", "last": "best"}[name]
    start(data, tmp_path / "run", keep=keep, **options).run()
    base = tmp_path / "run" / name
    before = (base / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="and the run needs it: name another out"):
        start(data, tmp_path / "run", model=str(base), overwrite=True)
    assert (base / "model.safetensors").read_bytes() == before
    shutil.copy(data, base / "vocab.json")
    with pytest.raises(ValueError, match="is a file that would be replaced: name another out"):
        start(str(base / "vocab.json"), tmp_path / "run", overwrite=True)


def test_conversations_bring_their_chat_template(data, tmp_path):
    """Also where the model has none: transformers knows no other way."""
    start(data, tmp_path / "run", steps=1)
    tokenizer = formats.load_tokenizer(tmp_path / "run")
    assert tokenizer.chat_template == CHAT_TEMPLATES["plain"]


def test_a_run_that_is_done_counts_again(works, learnt):
    run = learnt / "pairs"
    _, err = works("tune", "sft", "--resume", run)
    assert "has done its 24 steps" in err
    assert f"{run} (step 24): 4 of 4 training answers exact; loss 0." in err
    last = f"try: numgpt generate --model {run} --greedy 'Where does the fox live?'"
    assert err.splitlines()[-1] == last


def test_answers_that_are_too_long_are_not_asked_for(works, tmp_path):
    path = tmp_path / "long.jsonl"
    write_lines(path, {"prompt": "a", "completion": " b" * 100})
    tune = ("tune", "sft", "--model", "shakespeare", "--data", path, "--out", tmp_path / "run")
    _, err = works(*tune, *SMALL)
    assert "no answer of at most 80 tokens can be asked for" in err
    assert f"{tmp_path / 'run'} (step 2): loss " in err


def test_a_single_example_may_be_held_out(data, tmp_path):
    one = tmp_path / "one.jsonl"
    with open(data) as file:
        one.write_text(file.readline())
    trainer = start(data, tmp_path / "run", val_data=str(one), steps=1)
    assert len(trainer.task.examples.val) == 1
    assert "12 examples to train on, 1 held out" in str(trainer.task)
    trainer.run()
    assert math.isfinite(trainer.best_loss)
    with pytest.raises(ValueError, match="no example is held out: raise val_fraction, or bring"):
        start(data, tmp_path / "b", val_fraction=1e-9)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_so_many_examples_are_shown(data, tmp_path, capsys, count):
    said = told(start(data, tmp_path / "run", show=count))
    assert said[count].startswith("12 examples of ")  # the notes first
    assert sum(line.startswith("--- trained on") for line in said) == count
    assert capsys.readouterr() == ("", "")


def test_a_start_loads_base_and_tokenizer_once(data, tmp_path, monkeypatch):
    base = shipped(tmp_path / "base")  # in float32, as what stays mapped is
    functions = ((formats, name) for name in ("load", "load_tokenizer", "load_model"))
    counts = counted(monkeypatch, *functions)
    for lora_r in (4, 0):
        trainer = start(data, tmp_path / f"run{lora_r}", model=base, lora_r=lora_r, steps=2)
        assert counts == {"load": 1}
        assert is_mapped(trainer.model.parameters.flat) == (lora_r > 0)
        counts.clear()
        trainer.run()


def test_a_run_of_version_0_1_0_goes_on(data, tmp_path):
    """It kept the sums since the last report under other names."""
    start(data, tmp_path / "whole", log_every=4).run()
    trainer = start(data, tmp_path / "parts", log_every=4)
    for _ in range(3):
        trainer.step()
    trainer.save()
    trainer.lock.release()
    path = tmp_path / "parts/checkpoint.safetensors"
    tensors, metadata = read_safetensors(path)
    saved = json.loads(metadata["training"])
    sums = saved["unreported"]
    saved["unreported"] = [sums["loss"], saved.pop("unreported_steps")]
    named = {"tokens": "targets", "correct": "correct", "entropy": "entropy"}
    saved["statistics"] = {old: sums[new] for old, new in named.items()}
    arrays = {name: np.array(tensor.raw) for name, tensor in tensors.items()}
    formats.write_safetensors(path, arrays, {"training": json.dumps(saved)})
    Trainer.resume(tmp_path / "parts").run()
    whole, parts = (logged(tmp_path / name) for name in ("whole", "parts"))
    assert [(r["step"], r["entropy"]) for r in parts][1:] == [(6, whole[-1]["entropy"])]
    three, one = whole[1]["loss"], whole[0]["loss"]  # of steps 2 to 4, and of step 1
    assert parts[0]["loss"] == pytest.approx((3 * three + one) / 4)
    same_checkpoint(tmp_path / "whole", tmp_path / "parts")

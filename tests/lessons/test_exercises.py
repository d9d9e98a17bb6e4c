"""Every exercise: the solution is right, what stands there at first is not, and each typical
mistake gets its hint."""

import linecache
import re
import sys

import numpy as np
import pytest

from numgpt import objectives
from numgpt.lessons import check, figure, solution, yours
from numgpt.lessons.checking import Exercise, Mistake, verdict
from numgpt.lessons.course import LESSONS
from numgpt.lessons.exercises import EXERCISES
from numgpt.lessons.script import cells_of, definitions

ALL = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: f"{e.number} {e.name}")
MISTAKES = [(e, place) for e in EXERCISES.values() for place in range(len(e.mistakes))]


def test_every_exercise_of_a_lesson_is_in_the_table():
    for lesson in LESSONS:
        numbers = [cell.exercise for cell in cells_of(lesson.number) if cell.exercise]
        assert 2 <= len(numbers) <= 5 or lesson.number == 12
        assert numbers == [n for n in EXERCISES if n.startswith(f"{lesson.number}.")]
    names = [exercise.name for exercise in EXERCISES.values()]
    assert len(set(names)) == len(names)


@ALL
def test_the_solution_is_right(exercise):
    assert verdict(exercise, exercise.solution) == (
        True,
        f"✓ {exercise.number} {exercise.name} is right.",
    )


def test_lesson_10_is_what_numgpt_does():
    rng = np.random.default_rng(0)
    of_lesson = definitions(10)
    logps = rng.normal(size=(4, 6)) - 5
    loss, by_chosen, by_rejected = of_lesson["dpo"](*logps, beta=0.3)
    theirs, derivatives, _ = objectives.dpo(*logps, beta=0.3)
    np.testing.assert_allclose(loss, theirs, rtol=1e-12)
    np.testing.assert_allclose((by_chosen, by_rejected), derivatives, rtol=1e-12)
    rewards, (logp, old) = rng.normal(size=8), 0.3 * rng.normal(size=(2, 8, 3)) - 2
    advantages = of_lesson["advantages_of_groups"](rewards, 4)
    np.testing.assert_allclose(advantages, objectives.group_advantages(rewards, 4), rtol=1e-12)
    loss, dlogp = of_lesson["policy_loss"](logp, old, advantages[:, None])
    theirs, derivatives, _ = objectives.grpo(logp, old, advantages, np.ones((8, 3), bool))
    np.testing.assert_allclose(loss / 24, theirs, rtol=1e-12)
    np.testing.assert_allclose(dlogp / 24, derivatives, rtol=1e-12)


@ALL
def test_what_stands_there_at_first_is_not(exercise):
    cell = exercise.cell
    result = verdict(exercise, exercise.compiled(cell.stub))
    assert not result.right
    dots = "...  # your code" in cell.stub
    assert ("returns nothing yet" in result.text) == dots
    assert "# solution" not in cell.stub
    assert "#:" not in cell.solved


@ALL
def test_a_right_answer_that_is_computed_otherwise_is_right(exercise):
    """With other roundings of each step, in numbers of more digits; in lesson 1, which has whole
    numbers, by other algorithms."""
    function = OTHERWISE.get(exercise.name) or (
        lambda *arguments: exercise.solution(*map(_longer, arguments))
    )
    function.__name__ = exercise.name
    assert verdict(exercise, function).right


@pytest.mark.parametrize("number", ["2.4", "4.2", "9.4"])
def test_float32_is_right_to_the_digits_that_it_has(number):
    exercise = EXERCISES[number]

    def rounded(value):
        if isinstance(value, tuple):
            return tuple(map(rounded, value))
        return value.astype(np.float32)

    def function(*arguments):
        return exercise.solution(*map(rounded, arguments))

    assert verdict(exercise, function).right
    worse = verdict(exercise, lambda *a: tuple(1.001 * part for part in function(*a)))
    assert not worse.right


def _longer(value):
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(np.longdouble)
    if isinstance(value, dict):
        return {name: _longer(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map(_longer, value))
    return value


def _most_frequent_pair(ids):
    every = [tuple(ids[place : place + 2]) for place in range(len(ids) - 1)]
    return max(sorted(set(every)), key=every.count)


def _merge(ids, pair, new):
    if len(ids) < 2:
        return list(ids)
    used = 2 if (ids[0], ids[1]) == pair else 1
    return [new if used == 2 else ids[0], *_merge(ids[used:], pair, new)]


def _train(ids, merges):
    pair = _most_frequent_pair(ids)
    table = {pair: 256}
    for step in range(1, merges):
        ids = _merge(ids, pair, 255 + step)
        pair = _most_frequent_pair(ids)
        table[pair] = 256 + step
    return table


def _encode(ids, table):
    for pair in sorted(table, key=table.get):
        ids = _merge(ids, pair, table[pair])
    return ids


OTHERWISE = {"most_frequent_pair": _most_frequent_pair, "merge": _merge}
OTHERWISE |= {"train": _train, "encode": _encode}


@pytest.mark.parametrize(
    ("exercise", "place"), MISTAKES, ids=[f"{e.number} {place}" for e, place in MISTAKES]
)
def test_a_typical_mistake_gets_its_hint(exercise, place):
    mistake = exercise.mistakes[place]
    assert exercise.cell.solved.count(mistake.code) == 1
    result = verdict(exercise, exercise.wrong[place])
    assert not result.right
    assert result.text.endswith(f"\n  Hint: {mistake.hint}")


@ALL
def test_three_mistakes_at_least_are_known_and_no_hint_gives_the_solution(exercise):
    assert len(exercise.mistakes) >= 3
    _, body = exercise.cell.source.split("# solution")
    lines = [line.strip() for line in body.splitlines() if len(line.strip()) > 12]
    assert lines
    for mistake in exercise.mistakes:
        assert not any(line in mistake.hint for line in lines)


LINEAR = definitions(2)
# What is done in place of 2.4, and what is said of it; …
INSTEAD = {
    "nothing": (lambda dy, cache: None, "it returns nothing yet"),
    "dots": (lambda dy, cache: ..., "it returns nothing yet"),
    "few": (lambda dy, cache: (dy, dy), "it returns 2 values, expected dx, dweight, dbias"),
    "one": (lambda dy, cache: dy, "it returns 1 value, expected dx, dweight, dbias"),
    "error": (lambda dy, cache: 1 / 0, "it raises ZeroDivisionError: division by zero, with dy"),
    "shape": (
        lambda dy, cache: (dy, 0, 0),
        "dx has the shape (4, 2), expected (4, 3), with dy of shape (4, 2), cache of shapes",
    ),
    "row": (
        lambda dy, cache: (dy @ cache[1].T + dy[:, :1], 0, 0),
        "dx agrees but for a constant a row: is one of the paths missing?",
    ),
    "text": (lambda dy, cache: ("dx", 0, 0), "dx is 'dx', expected an array"),
}
# … of its first gradient passed through a function, with two beside it that are wrong; …
DX = {
    "turned": (np.transpose, "dx has the shape (3, 4), expected (4, 3): the other way round"),
    "sign": (np.negative, "dx has the wrong sign"),
    "factor": (lambda dx: dx / 4, "dx is 0.25 times the right one"),
    "twice, and the other way": (
        lambda dx: -2 * dx,
        "dx is -2 times the right one: a sum for a mean, or a factor forgotten?",
    ),
    "near": (lambda dx: 1.00001 * dx, "dx is not right yet: 0 of 12 numbers are right; it is "),
    "other factor": (lambda dx: 0.9 * dx, "dx is 0.9 times the right one: which factor is it?"),
    "float32": (
        lambda dx: (1.001 * dx).astype(np.float32) + np.float32(1),
        "dx is not right yet: 0 of 12 numbers are right; it is ",
    ),
    "nan": (lambda dx: dx * np.nan, "dx has 12 numbers that are NaN"),
    "place": (
        lambda dx: dx + np.eye(4, 3)[:, ::-1],
        "dx is not right yet: 9 of 12 numbers are right; it is",
    ),
    "list": (
        lambda dx: [*map(list, dx)],
        "dx is a list, expected an array: np.array makes one of it",
    ),
}
# … and what an exercise's solution gives, passed through a function.
CHANGED = {
    "number": ("2.4", lambda r: (*r[:2], 3), "dbias has the"),
    "order": (
        "2.4",
        lambda r: r[::-1],
        "dx is what dbias should be: the order is dx, dweight, dbias",
    ),
    "a name too many": (
        "6.3",
        lambda r: (r[0], r[1] | {"x": 1}),
        "the dictionary of gradients has a name too many, 'x', with",
    ),
    "an array for a list": ("1.2", np.array, "what it returns is an array, exp"),
    "other bits": ("12.3", lambda r: (r[0] + 0.25, r[1]), "q has the dtype float64, expected int8"),
    "a number is NaN": ("3.3", lambda r: (np.nan, r[1]), "loss is NaN or infinite, with"),
    "a number": ("3.3", lambda r: (1.5 + r[0], r[1]), "loss is not right yet: it is "),
    "one of several names": (
        "6.3",
        lambda r: (r[0], r[1] | {"h.0.ln_2.bias": 2 * r[1]["h.0.ln_2.bias"]}),
        "the dictionary of gradients is not right yet: 'h.0.ln_2.bias' is 2 times the right one",
    ),
    "the sign of a number": (
        "3.3",
        lambda r: (-r[0] - 1e-6 + 1e-6, r[1]),
        "loss has the wrong sign",
    ),
    "one value too many": ("2.3", lambda r: (r[0], (*r[1], 1)), "cache has 3 elements, expected 2"),
    "a list too short": (
        "3.5",
        lambda r: (r[0], r[1][:1]),
        "the list of gradients has 1 element, expected 2, with batches with 2 elements.",
    ),
    "a generator": (
        "3.5",
        lambda r: (r[0], (part for part in r[1])),
        "the list of gradients is <generator",
    ),
    "the order, though a mistake looks alike": (
        "4.2",
        lambda r: (r[0], r[2], r[1]),
        "dweight is what dbias should be: the order is dx, dweight, dbias",
    ),
    "in a list": (
        "7.3",
        lambda r: [r[0], *(-part for part in r[1:])],
        "the list is not right yet: element 1 has the wrong sign",
    ),
}


def _changed(number, change):
    return lambda *arguments: change(EXERCISES[number].solution(*arguments))


def _of_dx(change):
    return lambda dy, cache: (change(dy @ cache[1].T), 0, 0)


DESCRIBED = {name: ("2.4", function, said) for name, (function, said) in INSTEAD.items()}
DESCRIBED |= {name: ("2.4", _of_dx(change), said) for name, (change, said) in DX.items()}
DESCRIBED |= {name: (n, _changed(n, change), said) for name, (n, change, said) in CHANGED.items()}
DESCRIBED["0 where the loss is 0, too"] = (
    "3.4",
    lambda z, targets: (
        EXERCISES["3.4"].solution(z, targets) if (targets != -100).any() else (0.0, 0.0)
    ),
    "dz has the shape (), expected (2, 3)",
)


@pytest.mark.parametrize("name", DESCRIBED)
def test_what_fits_no_mistake_is_described(name):
    number, function, message = DESCRIBED[name]
    exercise = EXERCISES[number]
    text = verdict(exercise, function).text
    assert text.startswith(f"✗ {number} {exercise.name}: {message}"), text
    assert "Hint" not in text


def test_two_numbers_that_are_nearly_alike_are_shown_with_the_digits_that_differ():
    function = _changed("8.2", lambda p: p * (1 + 3e-7 * (p == p.max())))
    text = verdict(EXERCISES["8.2"], function).text
    said, wanted = re.search(r"it is (\S+) at \[\d\], expected (\S+), with", text).groups()
    assert said != wanted
    assert float(said) == pytest.approx(float(wanted), rel=1e-6)


def test_the_line_that_raises_is_the_learners(monkeypatch):
    name, lines = "<ipython-input-1>", ["def wrong(dy, cache):\n", "    return dy @ cache[7]\n"]
    monkeypatch.setitem(linecache.cache, name, (0, None, lines, name))
    namespace = {}
    exec(compile("".join(lines), name, "exec"), namespace)
    text = verdict(EXERCISES["2.4"], namespace["wrong"]).text
    assert "it raises IndexError: tuple index out of range (in: return dy @ cache[7]), wi" in text


def test_what_differs_most_is_shown():
    def function(dy, cache):
        dx, *rest = LINEAR["linear_backward"](dy, cache)
        dx[0, 1] += 1e-3
        dx[2, 0] = 7
        return dx, *rest

    text = verdict(EXERCISES["2.4"], function).text
    assert "dx is not right yet: 10 of 12 numbers are right; it is 7 at [2, 0], expected " in text


@pytest.mark.parametrize("number", ["1.5", "2.5", "3.5", "4.3", "7.4", "9.3", "10.5"])
def test_code_whose_fault_is_to_be_found_gets_no_hint_before_it_was_changed(number, capsys):
    """… as it stands in a notebook's cell, below a comment of the learner's."""
    exercise = EXERCISES[number]
    namespace = definitions(exercise.lesson).copy()
    cell = compile(f"# mine\n{exercise.cell.stub}", "<cell>", "exec", dont_inherit=True)
    exec(cell, namespace)
    check(namespace[exercise.name])
    said = capsys.readouterr().out
    assert said.startswith(f"✗ {number} ")
    assert "Hint" not in said


def test_code_that_was_changed_gets_its_hint(capsys):
    exercise = EXERCISES["4.3"]
    check(exercise.compiled(exercise.cell.stub))
    assert "dweight is 0.5 times the right one" in (said := capsys.readouterr().out)
    assert "Hint" not in said
    check(exercise.wrong[0])  # one of its two faults is mended
    assert "Hint: off by a factor of B" in capsys.readouterr().out


def test_a_function_that_calls_another_that_is_not_right_is_told_of_it(capsys):
    exercise = EXERCISES["3.5"]
    called = EXERCISES["3.4"].wrong[0]
    check(exercise.compiled(exercise.cell.solved, masked_cross_entropy=called))
    said = capsys.readouterr().out
    assert "It calls your masked_cross_entropy, which is not right yet: mend 3.4 first" in said
    assert 'or masked_cross_entropy = yours("3.4")' in said
    check(exercise.wrong[0])
    assert "It calls" not in capsys.readouterr().out


def test_the_courses_own_is_called_so(capsys):
    check(EXERCISES["3.1"].solution)
    assert capsys.readouterr().out == "✓ 3.1 softmax: the course's\n"


def test_more_in_a_dictionary_does_no_harm_and_what_is_printed_is_heard_once(capsys):
    exercise = EXERCISES["6.2"]

    def more(*arguments):
        print("heard")
        y, cache = exercise.solution(*arguments)
        return y, cache | {"x": arguments[0]}

    assert verdict(exercise, more).right

    def less(*arguments):
        print("heard")
        return more(*arguments)[0], {}

    capsys.readouterr()
    assert "cache lacks 'ln_1'" in verdict(exercise, less).text
    assert capsys.readouterr().out == "heard\n" * 2


def test_another_mask_is_told_by_its_zeros():
    exercise = EXERCISES["7.4"]
    text = verdict(exercise, lambda dy, kept, p: dy * np.roll(kept, 1, axis=0) / (1 - p)).text
    assert "dx is 0 in places where it should not be: another mask, or other rows?" in text


def test_an_argument_that_is_changed_is_told_of():
    def changes(dy, cache):
        gradients = LINEAR["linear_backward"](dy, cache)
        dy *= 2
        return gradients

    text = verdict(EXERCISES["2.4"], changes).text
    assert "it changes its argument dy: whoever calls still needs it" in text


def test_of_two_mistakes_that_look_alike_here_the_one_that_fits_all_cases_is_meant():
    exercise = Exercise(
        "2.3",
        "linear_forward",
        lambda rng: [(np.eye(2), np.eye(2), np.ones(2)), (np.eye(2), np.eye(2), np.arange(2.0))],
        (
            Mistake("+ bias", "+ bias.sum() / 2 + 1", "the mean"),
            Mistake("+ bias", "+ 2 * bias", "twice"),
        ),
        ("y", "cache"),
    )
    for place, hint in enumerate(("the mean", "twice")):
        assert verdict(exercise, exercise.wrong[place]).text.endswith(f"Hint: {hint}")


def test_check_and_solution(capsys):
    check(LINEAR["linear_forward"])
    assert capsys.readouterr().out == "✓ 2.3 linear_forward is right.\n"
    check(lambda x, weight, bias: None, "2.3")
    assert capsys.readouterr().out.startswith("✗ 2.3 linear_forward: it returns nothing yet")
    solution("2.4")
    printed = capsys.readouterr().out
    assert printed.startswith("def linear_backward(dy, cache):")
    assert "return dy @ weight.T, x.T @ dy" in printed
    for call, message in (
        (lambda: check(len), "no exercise has a function called 'len': say which it solves"),
        (lambda: check(len, "9.99"), "there is no exercise '9.99': lesson 9 has 9.1 "),
        (lambda: solution("2.44"), "there is no exercise '2.44': lesson 2 has 2.1 "),
        (lambda: yours("2.1", "2"), "there is no exercise '2': lesson 2 has 2.1 "),
        (lambda: yours("99.1"), "there is no exercise '99.1': lessons are 1 to 12"),
        (lambda: yours(), 'name an exercise or several, such as "1.1"'),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(message)


def test_a_figure_needs_matplotlib(monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"figure draws by matplotlib: pip install 'numgpt\[les"):
        figure()


@pytest.mark.live("matplotlib")
def test_a_figure_can_be_read_on_light_and_on_dark_pages():
    from matplotlib import pyplot

    with pyplot.rc_context():
        drawn, axes = figure(2, 3, width=2.0)
        assert axes.shape == (2, 3)
        assert drawn.get_size_inches().tolist() == [6.0, 6.0]
        assert drawn.get_facecolor()[3] == axes[0, 0].get_facecolor()[3] == 0  # transparent
        grey = axes[0, 0].xaxis.label.get_color()
        assert 0.45 < int(grey[1:3], 16) / 255 < 0.55
        (line,) = axes[0, 0].plot([1])
        assert line.get_color() not in ("#1f77b4", "C0")
        pyplot.close(drawn)

"""numgpt lessons."""

from numgpt.lessons.course import LESSONS
from numgpt.lessons.notebooks import write_notebooks


def test_the_command_line(call, tmp_path):
    course = tmp_path / "the course"
    status, out, err = call("lessons", course)
    assert status == 0
    assert out.split("\n")[:-1] == [str(w.path) for w in write_notebooks(course)]
    assert f"try: jupyter lab '{course}/01_text_to_ids.ipynb'" in err
    (course / "01_text_to_ids.ipynb").write_text("mine")
    status, _, err = call("lessons", course)
    assert status == 0
    assert f"note: {course}/01_text_to_ids.ipynb stays as it is: it has been changed" in err
    assert (course / "01_text_to_ids.ipynb").read_text() == "mine"
    status, out, _ = call("lessons", "--list")
    assert status == 0
    assert len(out.splitlines()) == len(LESSONS)
    (tmp_path / "file").write_text("")
    status, _, err = call("lessons", tmp_path / "file")
    assert status == 2
    assert len(err.splitlines()) == 1

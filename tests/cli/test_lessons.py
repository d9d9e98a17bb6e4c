"""numgpt lessons."""

from numgpt.lessons.course import LESSONS
from numgpt.lessons.notebooks import write_notebooks


def test_the_command_line(works, refuses, tmp_path):
    course = tmp_path / "the course"
    out, err = works("lessons", course)
    assert out.split("\n")[:-1] == [str(w.path) for w in write_notebooks(course)]
    assert f"try: jupyter lab '{course}/01_text_to_ids.ipynb'" in err
    (course / "01_text_to_ids.ipynb").write_text("mine")
    _, err = works("lessons", course)
    assert f"note: {course}/01_text_to_ids.ipynb stays as it is: it has been changed" in err
    assert (course / "01_text_to_ids.ipynb").read_text() == "mine"
    assert len(works("lessons", "--list")[0].splitlines()) == len(LESSONS)
    (tmp_path / "file").write_text("")
    refuses("lessons", tmp_path / "file")

"""What the exercises are checked with: arguments, and typical mistakes with a hint for each. A file
a lesson; the solutions stand in the lessons themselves."""

from __future__ import annotations

from importlib import import_module

from numgpt.lessons.checking import Exercise
from numgpt.lessons.course import LESSONS

EXERCISES: dict[str, Exercise] = {
    exercise.number: exercise
    for lesson in LESSONS
    for exercise in import_module(f"{__name__}.lesson_{lesson.number:02}").EXERCISES
}

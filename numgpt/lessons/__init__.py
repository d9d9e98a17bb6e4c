"""THE COURSE, in reading order. gpt.py: all of GPT on one screen, forwards and backwards. The
numbered scripts are lessons, which `numgpt lessons` writes as notebooks; exercises/ has what their
exercises are checked with.

In a notebook,

    check(linear_backward)     says whether your function is right, or what differs, with a hint
    solution("2.2")            prints what stands in the course
    yours("2.1", "2.2")        your functions out of the notebooks beside this one
    figure(1, 2)               matplotlib's figure and axes, for light and dark pages
"""

from numgpt.lazy import lazy_names

__all__ = ["check", "figure", "solution", "yours"]
__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, "classroom"))

"""The C library's allocator, told to keep memory that numgpt will want again.

glibc takes each array above a threshold, at first 128 kB, from the system as pages of its own, and
gives them back when the array dies. A training step makes the same temporaries again and again, and
to fault their pages in takes longer than to compute what is in them: formulas on whole arrays then
cost twice what the same arithmetic costs in place. Raising two thresholds ends that:

    M_MMAP_THRESHOLD    smaller arrays come from the heap, where the memory of the last one lies
    M_TRIM_THRESHOLD    the heap's end goes back to the system only where so much of it is free

The thresholds are the process's, not numgpt's alone. They stay as they are where the C library is
not glibc, where the user has set any of its own (MALLOC_…_, GLIBC_TUNABLES), and with
NUMGPT_KEEP_MEMORY=0.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_FROM_HEAP = 1 << 25  # bytes; glibc takes no more (HEAP_MAX_SIZE / 2)
KEPT_FREE = 1 << 29  # bytes at the heap's end
VARIABLE = "NUMGPT_KEEP_MEMORY"


def keep_memory() -> tuple[bool, str]:
    """Raise glibc's thresholds, where they are nobody else's -> whether they are, and a sentence on
    it."""
    if os.environ.get(VARIABLE) == "0":
        return False, f"left as it is: {VARIABLE}=0"
    if theirs := _set_by_the_user():
        return False, f"left as it is: {theirs} is set"
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (that it exists says whose library it is)
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False, "left as it is: not glibc's"
    kept = mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP) and mallopt(M_TRIM_THRESHOLD, KEPT_FREE)
    if not kept:
        return False, "left as it is: mallopt refused"
    return True, (
        f"glibc's, keeps arrays below {LARGEST_FROM_HEAP >> 20} MB on its heap, and"
        f" {KEPT_FREE >> 20} MB free ({VARIABLE}=0 leaves it as it is)"
    )


def _set_by_the_user() -> str | None:
    """The first variable with which somebody tunes glibc's allocator."""
    for name in sorted(os.environ):
        if name.startswith("MALLOC_") and name.endswith("_"):
            return name
    return "GLIBC_TUNABLES" if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") else None


KEPT, ALLOCATOR = keep_memory()

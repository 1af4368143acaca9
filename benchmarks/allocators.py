"""Memory allocators that a measured process may run with.

glibc gives large blocks back to the system and takes them again, page by page. A training step
does that for each of its tensors, so that a side that keeps its memory gains much.
"""

from __future__ import annotations

import ctypes.util
import os

ALLOCATORS = ("default", "tuned", "jemalloc", "tcmalloc")
# glibc keeps what it has: no block is mapped by itself, and the heap is never trimmed
TUNED = {
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_MMAP_THRESHOLD_": "10000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}
LIBRARIES = {"jemalloc": "jemalloc", "tcmalloc": "tcmalloc_minimal"}


def list_available() -> list[str]:
    """List the allocators of this machine."""
    return [
        name
        for name in ALLOCATORS
        if name not in LIBRARIES or ctypes.util.find_library(LIBRARIES[name])
    ]


def make_environment(name: str) -> dict[str, str]:
    """Make the environment of a process with an allocator.

    Args:
        name: Of `list_available`.
    """
    environment = {key: value for key, value in os.environ.items() if key not in TUNED}
    environment.pop("LD_PRELOAD", None)
    if name == "tuned":
        environment |= TUNED
    if name in LIBRARIES:
        environment["LD_PRELOAD"] = ctypes.util.find_library(LIBRARIES[name]) or ""
    return environment

"""Import TensorFlow without its chatter.

TensorFlow's C++ writes to stderr, past every log level, while it is being imported and when it first looks for devices:
lines about oneDNN, missing CUDA drivers and failed cuInit calls that tell a user nothing. Importing this module imports
TensorFlow with stderr held back; `held_back` does the same for other calls. What was held back is shown if the body fails.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold back what native code writes to stderr inside; shown if the body raises."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


with held_back():
    import tensorflow  # noqa: F401

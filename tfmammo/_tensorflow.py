"""Import TensorFlow without its chatter.

TensorFlow's C++ writes to stderr, past every log level, while it is being imported and when it
first looks for devices: lines about oneDNN, missing CUDA drivers and failed cuInit calls that tell
a user nothing. Importing this module imports TensorFlow with stderr held back; `held_back` does the
same for other calls. What was held back is shown if the body fails. stderr is the process's, so
that threads which hold it back at once share it: the first one takes it away, the last one brings
it back.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator


class _Stderr:
    """The process's stderr, and how many hold it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0

    def take(self) -> None:
        """From here on what is written to stderr goes to a file."""
        with self.lock:
            if not self.count:
                sys.stderr.flush()
                self.saved, self.held = os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115  # `give` closes it
                os.dup2(self.held.fileno(), 2)
            self.count += 1

    def show(self) -> None:
        """Write what was held back so far to the real stderr."""
        with self.lock:
            self.held.seek(0)
            os.write(self.saved, self.held.read())
            self.held.seek(0)
            self.held.truncate()

    def give(self) -> None:
        """Bring stderr back, if nobody else holds it."""
        with self.lock:
            self.count -= 1
            if not self.count:
                os.dup2(self.saved, 2)
                os.close(self.saved)
                self.held.close()


_stderr = _Stderr()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold back what native code writes to stderr inside; shown if the body raises.

    Any number of threads may.
    """
    _stderr.take()
    try:
        yield
    except BaseException:
        _stderr.show()
        raise
    finally:
        _stderr.give()


with held_back():
    import tensorflow  # noqa: F401

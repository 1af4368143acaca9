"""Import TensorFlow without its messages on stderr.

TensorFlow's C++ writes to stderr, past every log level, while it is being imported and when it
first looks for devices: lines about oneDNN, missing CUDA drivers and failed cuInit calls that tell
a user nothing. Importing this module does both with stderr held back, and `hold_back_stderr` does
the same for other calls. Everything that was held back is shown if the body fails, or if the
machine has an NVIDIA GPU that TensorFlow can't use. Threads share the process's stderr: the first
one to hold it back redirects it, the last one to finish restores it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator


class _Stderr:
    """The process's stderr, and how many threads hold it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0

    def redirect(self) -> None:
        """Redirect stderr to a file, if no other thread has."""
        with self.lock:
            if not self.count:
                sys.stderr.flush()
                self.original = os.dup(2)
                self.file = tempfile.TemporaryFile()  # noqa: SIM115  # `restore` closes it
                os.dup2(self.file.fileno(), 2)
            self.count += 1

    def show(self) -> None:
        """Write everything held back so far to the real stderr."""
        with self.lock:
            self.file.seek(0)
            os.write(self.original, self.file.read())
            self.file.seek(0)
            self.file.truncate()

    def restore(self) -> None:
        """Restore stderr, if no other thread holds it back."""
        with self.lock:
            self.count -= 1
            if not self.count:
                os.dup2(self.original, 2)
                os.close(self.original)
                self.file.close()


_stderr = _Stderr()


@contextlib.contextmanager
def hold_back_stderr() -> Iterator[None]:
    """Hold back what native code writes to stderr inside, and show it if the body raises.

    Any number of threads may be inside at once.
    """
    _stderr.redirect()
    try:
        yield
    except BaseException:
        _stderr.show()
        raise
    finally:
        _stderr.restore()


with hold_back_stderr():
    import tensorflow

    # Else the first operation would look for GPUs, and say that there are none.
    found = tensorflow.config.list_physical_devices("GPU")
    if not found and os.path.exists("/dev/nvidiactl") and "CUDA_VISIBLE_DEVICES" not in os.environ:
        _stderr.show()  # there is one that can't be used, and this says why

"""stderr held back: by one, by many at once, and shown where something fails."""

import os
import subprocess
import sys
import threading

import pytest

from tfmammo._tensorflow import held_back


@pytest.fixture
def stderr(capfd):
    """A function -> what has reached the process's stderr since it was last asked."""
    return lambda: capfd.readouterr().err


def write(text):
    os.write(2, text.encode())  # as native code does, past sys.stderr


def test_what_is_written_inside_is_held_back(stderr):
    write("before ")
    with held_back():
        write("inside ")
        with held_back():
            write("deeper ")
        write("still inside ")
    write("behind")
    assert stderr() == "before behind"


def test_it_is_shown_where_the_body_fails(stderr):
    with pytest.raises(ZeroDivisionError), held_back():
        write("a reason")
        raise ZeroDivisionError
    write(", and more")
    assert stderr() == "a reason, and more"


def test_threads_that_overlap_give_stderr_back(stderr):
    """One begins while another is inside and ends after it: the last one must not bring back the
    first one's file.
    """
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first():
        with held_back():
            first_is_in.set()
            assert second_is_in.wait(10)
            write("first ")
        first_is_out.set()

    def second():
        assert first_is_in.wait(10)
        with held_back():
            second_is_in.set()
            assert first_is_out.wait(10)
            write("second ")

    threads = [threading.Thread(target=one) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    write("afterwards")
    assert stderr() == "afterwards"


def test_no_file_stays_open():
    code = """
import os, threading
from tfmammo.quiet import held_back
def work():
    for _ in range(50):
        with held_back():
            os.write(2, b"x")
before = len(os.listdir("/proc/self/fd"))
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(os.listdir("/proc/self/fd")) - before)
"""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "0" and "x" not in done.stderr

"""TensorFlow's import: its settings, and what it writes to stderr held back, or shown."""

import os
import subprocess
import sys
import threading

import pytest

from tfmammo.nn._tensorflow import hold_back_stderr


@pytest.fixture
def stderr(capfd):
    """A function -> what has reached the process's stderr since it was last asked."""
    return lambda: capfd.readouterr().err


def write(text):
    os.write(2, text.encode())  # as native code does, past sys.stderr


def test_what_is_written_inside_is_held_back(stderr):
    write("before ")
    with hold_back_stderr():
        write("inside ")
        with hold_back_stderr():
            write("deeper ")
        write("still inside ")
    write("behind")
    assert stderr() == "before behind"


def test_it_is_shown_where_the_body_fails(stderr):
    with pytest.raises(ZeroDivisionError), hold_back_stderr():
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
        with hold_back_stderr():
            first_is_in.set()
            assert second_is_in.wait(10)
            write("first ")
        first_is_out.set()

    def second():
        assert first_is_in.wait(10)
        with hold_back_stderr():
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


@pytest.mark.long
def test_no_file_stays_open():
    code = """
import os, threading
from tfmammo.nn._tensorflow import hold_back_stderr
def work():
    for _ in range(50):
        with hold_back_stderr():
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


@pytest.mark.parametrize(("asked", "used"), [({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0")])
def test_onednn_is_used_on_every_processor_unless_somebody_says_no(asked, used):
    environment = {name: text for name, text in os.environ.items() if "ONEDNN" not in name} | asked
    program = "import os, tfmammo; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert said.stdout.strip() == used

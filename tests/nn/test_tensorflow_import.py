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


def test_it_is_shown_where_the_body_fails(stderr):
    with pytest.raises(ZeroDivisionError), hold_back_stderr():
        write("a reason")
        raise ZeroDivisionError
    write(", and more")
    assert stderr() == "a reason, and more"


def test_threads_that_overlap_give_stderr_back(stderr):
    """One begins while another is inside and ends after it: the last one must not bring back the
    first one's file. And no file stays open.
    """
    opened = len(os.listdir("/proc/self/fd"))
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def hold_back(before, after, entered, left):
        assert before is None or before.wait(10)
        with hold_back_stderr():
            entered.set()
            assert after.wait(10)
            write("inside")
        left.set()

    threads = [
        threading.Thread(target=hold_back, args=arguments)
        for arguments in (
            (None, second_is_in, first_is_in, first_is_out),
            (first_is_in, first_is_out, second_is_in, threading.Event()),
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    write("afterwards")
    assert stderr() == "afterwards" and len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize(("asked", "used"), [({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0")])
def test_onednn_is_used_on_every_processor_unless_somebody_says_no(asked, used):
    environment = {name: text for name, text in os.environ.items() if "ONEDNN" not in name} | asked
    program = "import os, tfmammo; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert said.stdout.strip() == used

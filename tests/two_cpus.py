"""Scripts for two replicas on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
START = """
import json
import tfmammo
import numpy as np
import tensorflow as tf
import keras
devices = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
"""


def run_on_two_cpus(script: str, folder: Path) -> Any:
    """Run Python code in a process with two logical devices, CPU:0 and CPU:1.

    TensorFlow must learn of logical devices before it starts, hence the process.

    Args:
        script: Follows START.
        folder: Where it is written to.

    Returns:
        What the script prints last, read as JSON.
    """
    file = folder / "two_cpus_script.py"
    file.write_text(START + script, encoding="utf-8")
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, file],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

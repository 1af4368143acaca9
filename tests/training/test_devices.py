"""Devices and precision: faked GPUs, and logical CPUs in a process of their own."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import tensorflow as tf
from pydantic import ValidationError

from tfmammo.config import TrainingConfig
from tfmammo.errors import ConfigError
from tfmammo.training import devices


@pytest.mark.parametrize(
    ("capabilities", "policy"),
    [
        ([(7, 5)], "mixed_float16"),  # T4
        ([(8, 0)], "mixed_bfloat16"),  # A100
        ([(9, 0), (9, 0)], "mixed_bfloat16"),  # H100
        ([(8, 6), (7, 5)], "mixed_float16"),  # the weaker one decides
        ([None], "mixed_float16"),  # TensorFlow does not know it
    ],
)
def test_auto_precision_follows_the_gpus(monkeypatch, capabilities, policy):
    details = [{"compute_capability": each} if each else {} for each in capabilities]
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda place: details[place])
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16_faster", lambda: False)
    for values, expected in (
        ({}, policy),
        ({"devices": ["CPU:0"]}, "float32"),
        ({"precision": "float32"}, "float32"),
    ):
        config = TrainingConfig(**values)
        assert devices.choose_precision(config, range(len(details))) == expected


@pytest.mark.parametrize(
    ("vendor", "flags", "policy"),
    [
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", "mixed_bfloat16"),
        ("GenuineIntel", "avx512f avx512_bf16", "float32"),  # its products are slower in bfloat16
        ("AuthenticAMD", "avx512f avx512_bf16", "mixed_bfloat16"),
        ("AuthenticAMD", "avx2", "float32"),
    ],
)
def test_auto_precision_follows_the_cpu(monkeypatch, vendor, flags, policy):
    text = f"vendor_id : {vendor}\nflags : {flags}\n"
    monkeypatch.setattr(devices.Path, "read_text", lambda path, encoding: text)
    assert devices.choose_precision(TrainingConfig(), []) == policy


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, says TensorFlow; a strategy over several devices is the list of their names."""
    there = {"GPU": ["GPU:0", "GPU:1"], "CPU": ["CPU:0"]}

    def listed(kind=None):
        return [
            SimpleNamespace(name=f"/device:{name}")
            for each in ([kind] if kind else there)
            for name in there[each]
        ]

    monkeypatch.setattr(tf.config, "list_logical_devices", listed)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda names: names)
    monkeypatch.setattr(tf.distribute, "OneDeviceStrategy", lambda name: name)


BOTH = ["/GPU:0", "/GPU:1"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("values", "classes", "chosen", "warning"),
    [
        ({"batch_size": 1}, 1, None, "1 can't be shared by 2 GPUs, so GPU:0 alone trains"),
        ({"batch_size": 6}, 2, None, "a multiple of 4 takes all"),
        ({"batch_size": 2}, 1, BOTH, ""),
        ({"devices": 1, "batch_size": 2}, 1, None, ""),
        ({"devices": 2, "batch_size": 1}, 1, BOTH, ""),  # and check_batch refuses
        ({"devices": ["GPU:1"]}, 1, "/GPU:1", ""),
        ({"devices": ["CPU:0"]}, 1, "/CPU:0", ""),
    ],
)
def test_devices_are_chosen_by_number_or_name_or_by_the_batch(
    caplog, values, classes, chosen, warning
):
    found = devices.choose_strategy(TrainingConfig(**values), classes)
    assert found == (chosen or tf.distribute.get_strategy())
    assert warning in caplog.text and bool(caplog.text) == bool(warning)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("values", "error", "named"),
    [
        ({"devices": 3}, ConfigError, "training.devices: 3"),
        ({"devices": ["GPU:2"]}, ConfigError, "training.devices: .*GPU:2"),
        ({"devices": []}, ValidationError, "devices"),
        ({"devices": 0}, ValidationError, "devices"),
        ({"devices": ["GPU:0"] * 2}, ValidationError, "devices"),
        ({"devices": 1, "strategy": "multi_worker"}, ValidationError, "devices"),
    ],
)
def test_devices_that_make_no_sense_are_refused(values, error, named):
    with pytest.raises(error, match=named):
        devices.choose_strategy(TrainingConfig(**values))


TWO_CPUS = """
import tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from tfmammo.config import TrainingConfig
from tfmammo.training.devices import choose_strategy
for wanted in (None, 1, 2, ["CPU:1", "CPU:0"], ["CPU:1"]):
    chosen = choose_strategy(TrainingConfig(devices=wanted, batch_size=2))
    with chosen.scope():
        variable = tf.Variable(1.0)
    print(chosen.num_replicas_in_sync, variable.device[-5:])
"""  # noqa: E501


@pytest.mark.long
def test_logical_cpus_share_a_training():
    options = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", TWO_CPUS], **options)
    expected = ["1 CPU:0", "1 CPU:0", "2 CPU:0", "2 CPU:1", "1 CPU:1"]
    assert done.stdout.splitlines() == expected, done.stderr

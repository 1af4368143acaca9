"""Devices and precision: faked GPUs, and logical CPUs in a process of their own."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import tensorflow as tf
from pydantic import ValidationError

from tfmammo.config import Experiment, TrainingConfig
from tfmammo.errors import ConfigError, TrainingError
from tfmammo.training import devices


@pytest.mark.parametrize(
    ("capabilities", "policy"),
    [
        ([(7, 0)], "mixed_float16"),  # V100
        ([(7, 5)], "mixed_float16"),  # T4
        ([(8, 0)], "mixed_bfloat16"),  # A100
        ([(9, 0), (9, 0)], "mixed_bfloat16"),  # H100
        ([(8, 6), (7, 5)], "mixed_float16"),  # the weaker one decides
        ([None], "mixed_float16"),  # TensorFlow does not know it
    ],
)
def test_auto_precision_follows_the_gpus(monkeypatch, capabilities, policy):
    details = [
        {} if capability is None else {"compute_capability": capability}
        for capability in capabilities
    ]
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda place: details[place])
    assert devices.choose_precision(TrainingConfig(), range(len(details))) == policy
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16_faster", lambda: False)
    assert (
        devices.choose_precision(TrainingConfig(devices=["CPU:0"]), range(len(details)))
        == "float32"
    )
    assert (
        devices.choose_precision(TrainingConfig(precision="float32"), range(len(details)))
        == "float32"
    )


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
    assert (
        devices.choose_precision(TrainingConfig(precision="mixed_float16"), []) == "mixed_float16"
    )


@pytest.fixture
def two_gpus(monkeypatch):
    """TensorFlow says that there are two GPUs; a strategy over several devices is the list of their
    names.
    """
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


@pytest.mark.usefixtures("two_gpus")
def test_a_batch_that_two_gpus_cannot_share_is_computed_by_one(caplog):
    assert devices.choose_strategy(TrainingConfig(batch_size=1)) is tf.distribute.get_strategy()
    assert (
        "training.batch_size: 1 can't be shared by 2 GPUs, so GPU:0 alone trains; a multiple of 2 "
        "takes all" in caplog.text
    )
    caplog.clear()
    assert (
        devices.choose_strategy(TrainingConfig(batch_size=6), classes=2)
        is tf.distribute.get_strategy()
    )
    assert "a multiple of 4 takes all" in caplog.text
    caplog.clear()
    assert (
        devices.choose_strategy(TrainingConfig(batch_size=2)) == ["/GPU:0", "/GPU:1"]
        and not caplog.text
    )


@pytest.mark.usefixtures("two_gpus")
def test_devices_are_chosen_by_number_or_name(caplog):
    assert (
        devices.choose_strategy(TrainingConfig(devices=1, batch_size=2))
        is tf.distribute.get_strategy()
    )
    # and check_batch refuses
    assert devices.choose_strategy(TrainingConfig(devices=2, batch_size=1)) == ["/GPU:0", "/GPU:1"]
    assert devices.choose_strategy(TrainingConfig(devices=["GPU:1"])) == "/GPU:1"
    assert devices.choose_strategy(TrainingConfig(devices=["CPU:0"])) == "/CPU:0"
    assert not caplog.text
    with pytest.raises(ConfigError, match="training.devices: 3"):
        devices.choose_strategy(TrainingConfig(devices=3))
    with pytest.raises(ConfigError, match="training.devices: .*GPU:2"):
        devices.choose_strategy(TrainingConfig(devices=["GPU:2"]))


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(TrainingError, match="training.batch_size"):
        devices.check_batch(TrainingConfig(), 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": []},
        {"devices": 0},
        {"devices": ["GPU:0"] * 2},
        {"devices": 1, "strategy": "multi_worker"},
    ],
)
def test_devices_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError, match="devices"):
        TrainingConfig(**wrong)


def test_a_training_may_go_on_with_other_devices():
    one, other = (
        Experiment[dict](name="x", training=TrainingConfig(devices=wanted), model={})
        for wanted in (None, 2)
    )
    assert one.identity() == other.identity()


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
    done = subprocess.run(
        [sys.executable, "-c", TWO_CPUS], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == ["1 CPU:0", "1 CPU:0", "2 CPU:0", "2 CPU:1", "1 CPU:1"], (
        done.stderr
    )

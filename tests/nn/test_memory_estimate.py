"""Memory of a step: peaks by hand, and what a CPU's allocator really gave out."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.models.can import CAN, CANConfig
from tfmammo.nn.memory import compute_peak, estimate_memory

FLOAT = 4


# A model of matrix products alone, which need no scratch space: 4096 to 512, six times 512. The
# largest tensors of its step are gradients of its weights.
MEASURED = """
import json
from types import SimpleNamespace
from tfmammo.nn import _tensorflow
import tensorflow as tf
from tfmammo.nn.memory import estimate_memory

weights = [tf.Variable(tf.ones([4096 if i == 0 else 512, 512]) / 512) for i in range(7)]

def train_step(batch):
    with tf.GradientTape() as tape:
        values = tf.reshape(batch["image"], [-1, 4096])
        for weight in weights:
            values = tf.tanh(values @ weight)
        loss = tf.reduce_mean(values)
    gradients = tape.gradient(loss, weights)
    return {"loss": loss, "size": tf.add_n([tf.reduce_sum(each) for each in gradients])}

model = SimpleNamespace(
    networks={"dense": SimpleNamespace(variables=weights)}, optimizers={}, train_step=train_step
)
batch = {"image": tf.ones([8, 64, 64, 1]), "mask": tf.ones([8, 64, 64, 1]),
         "label": tf.zeros([8], tf.int32)}
step = tf.function(train_step)
step(batch)
tf.config.experimental.reset_memory_stats("CPU:0")
before = tf.config.experimental.get_memory_info("CPU:0")["current"]
step(batch)
measured = tf.config.experimental.get_memory_info("CPU:0")["peak"] - before
print(json.dumps([measured, estimate_memory(model, 8, 64, "CPU").step]))
"""


def trace(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    return tf.function(function).get_concrete_function(*specs).graph


def double(values):
    return tf.concat([values, values], 0)


def chain(values):
    return double(double(double(values)))  # 20; 40, after which 20 is gone; 80


def kept(values):
    first = double(values)
    return tf.concat([first, double(double(first))], 0)  # 100, while 20 and 80 are still there


def inside(values):
    return tf.reshape(tf.nn.relu(tf.tanh(double(values))), [2, -1])


def read_again(values):
    doubled = double(values)
    return tf.tanh(doubled), doubled


def wasteful(values):
    tf.concat([values] * 100, 0)  # nothing needs it, so it does not run
    return double(values)


@pytest.mark.parametrize(
    ("function", "numbers"),
    [(chain, 40 + 80), (kept, 20 + 80 + 100), (inside, 20), (read_again, 40), (wasteful, 20)],
)
def test_a_tensor_lives_until_it_is_last_read(function, numbers):
    """Reshaping takes nothing, and elementwise operations write over what nobody reads."""
    assert compute_peak(trace(function, [10])) == FLOAT * numbers


def test_a_called_function_counts_where_it_is_called():
    called = tf.function(lambda values: tf.reduce_sum(tf.concat([values] * 5, 0)))  # 100
    peak = compute_peak(trace(lambda values: called(double(values)), [10]))
    assert FLOAT * 120 <= peak <= FLOAT * 123


def test_an_unknown_size_is_an_error():
    with pytest.raises(ValueError, match="is not known before it runs"):
        compute_peak(trace(double, [None]))


def test_weights_and_slots_of_adam_by_hand():
    model = UNet(UNetConfig(widths=(4, 8)), 16)
    need = estimate_memory(model, 2, 16)
    weights = sum(int(tf.size(each)) for each in model.networks["segmenter"].variables)
    trained = model.networks["segmenter"].count_params()
    # and the seeds of dropout
    assert need.weights == pytest.approx(FLOAT * weights, rel=0.01)
    assert need.slots == pytest.approx(2 * FLOAT * trained, rel=0.1)
    assert need.total == need.weights + need.slots + need.step
    larger = estimate_memory(model, 4, 16)
    assert larger.slots == need.slots and larger.step == pytest.approx(2 * need.step, rel=0.1)


@pytest.mark.slow
def test_a_step_with_fused_normalisation_can_be_estimated():
    config = CANConfig(filters=(8, 8, 8), discriminator_filters=8)
    assert estimate_memory(CAN(config, 32), 1, 32).step > 0


@pytest.mark.long
def test_a_cpus_allocator_gives_out_what_is_estimated(repository):
    """Of a step without convolutions, whose scratch space shapes do not tell."""
    # the allocator of GPUs keeps statistics; of several threads each runs a branch at once
    settings = {"TF_CPU_ALLOCATOR_USE_BFC": "true", "PYTHONPATH": str(repository)}
    threads = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **dict.fromkeys(threads, "1")}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], env=environment | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    measured, estimated = json.loads(done.stdout.splitlines()[-1])
    assert estimated == pytest.approx(measured, rel=0.1)

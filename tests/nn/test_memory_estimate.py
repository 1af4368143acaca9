"""Memory of a step: peaks by hand, and what a CPU's allocator really gave out."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tensorflow as tf

from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.models.can import CAN, CANConfig
from tfmammo.nn.memory import Memory, compute_peak, estimate_memory

FLOAT = 4
MEASURED = """
import os
os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = "true"  # the allocator of GPUs, which keeps statistics
from tfmammo.nn import _tensorflow
import json
import tensorflow as tf
from tests.nn.test_memory_estimate import make_dense
from tfmammo.models.can import CAN, CANConfig
from tfmammo.nn.memory import estimate_memory

model = make_dense()
batch = {"image": tf.ones([8, 64, 64, 1]), "mask": tf.ones([8, 64, 64, 1]),
         "label": tf.zeros([8], tf.int32)}
step = tf.function(model.train_step)
step(batch)
tf.config.experimental.reset_memory_stats("CPU:0")
before = tf.config.experimental.get_memory_info("CPU:0")["current"]
step(batch)
measured = tf.config.experimental.get_memory_info("CPU:0")["peak"] - before
print(json.dumps([measured, estimate_memory(model, 8, 64, "CPU").step]))
"""


def make_dense():
    """A model of matrix products alone, which need no scratch space: 4096 to 512, six times 512.

    The largest tensors of its step are gradients of its weights.
    """
    weights = [tf.Variable(tf.ones([4096 if i == 0 else 512, 512]) / 512) for i in range(7)]

    def train_step(batch):
        with tf.GradientTape() as tape:
            values = tf.reshape(batch["image"], [-1, 4096])
            for weight in weights:
                values = tf.tanh(values @ weight)
            loss = tf.reduce_mean(values)
        gradients = tape.gradient(loss, weights)
        return {"loss": loss, "size": tf.add_n([tf.reduce_sum(each) for each in gradients])}

    network = SimpleNamespace(variables=weights)
    return SimpleNamespace(
        networks={"dense": network},
        optimizers={"dense": SimpleNamespace(variables=[])},
        train_step=train_step,
    )


def trace(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    return tf.function(function).get_concrete_function(*specs).graph


def test_a_tensor_lives_until_it_is_last_read():
    def chain(values):
        first = tf.concat([values, values], 0)  # 20
        second = tf.concat([first, first], 0)  # 40, after which the first is gone
        return tf.concat([second, second], 0)  # 80

    assert compute_peak(trace(chain, [10])) == FLOAT * (40 + 80)

    def kept(values):
        first = tf.concat([values, values], 0)
        second = tf.concat([first, first], 0)
        third = tf.concat([second, second], 0)
        return tf.concat([first, third], 0)  # 100, while 20 and 80 are still there

    assert compute_peak(trace(kept, [10])) == FLOAT * (20 + 80 + 100)


def test_reshaping_takes_nothing_and_elementwise_writes_over_what_nobody_reads():
    def inside(values):
        doubled = tf.concat([values, values], 0)
        return tf.reshape(tf.nn.relu(tf.tanh(doubled)), [2, -1])

    assert compute_peak(trace(inside, [10])) == FLOAT * 20

    def read_again(values):
        doubled = tf.concat([values, values], 0)
        return tf.tanh(doubled), doubled

    assert compute_peak(trace(read_again, [10])) == FLOAT * 40


def test_a_called_function_counts_where_it_is_called():
    @tf.function
    def called(values):
        return tf.reduce_sum(tf.concat([values] * 5, 0))  # 100

    def calling(values):
        doubled = tf.concat([values, values], 0)  # 20
        return called(doubled)

    peak = compute_peak(trace(calling, [10]))
    assert FLOAT * 120 <= peak <= FLOAT * 123


def test_an_unknown_size_is_an_error():
    with pytest.raises(ValueError, match="is not known before it runs"):
        compute_peak(trace(lambda values: tf.concat([values, values], 0), [None]))


def test_weights_and_slots_of_adam_by_hand():
    model = UNet(UNetConfig(widths=(4, 8)), 16)
    need = estimate_memory(model, 2, 16)
    weights = sum(int(tf.size(each)) for each in model.networks["segmenter"].variables)
    trained = model.networks["segmenter"].count_params()
    # and the seeds of dropout
    assert need.weights == pytest.approx(FLOAT * weights, rel=0.01)
    assert need.slots == pytest.approx(2 * FLOAT * trained, rel=0.1)
    assert need.total == need.weights + need.slots + need.step
    assert Memory(1, 2, 4).total == 7
    larger = estimate_memory(model, 4, 16)
    assert larger.slots == need.slots and larger.step == pytest.approx(2 * need.step, rel=0.1)


@pytest.mark.long
def test_a_cpus_allocator_gives_out_what_is_estimated(repository):
    """Of a step without convolutions, whose scratch space shapes do not tell."""
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": "-1"}
    # one thread, because several run branches at once that the estimate takes one after the other
    threads = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    environment |= dict.fromkeys(threads, "1")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured, estimated = json.loads(done.stdout.splitlines()[-1])
    assert estimated == pytest.approx(measured, rel=0.1)


def test_what_nothing_needs_does_not_run():
    def wasteful(values):
        tf.concat([values] * 100, 0)
        return tf.concat([values, values], 0)

    assert compute_peak(trace(wasteful, [10])) == FLOAT * 20


@pytest.mark.slow
def test_a_step_with_fused_normalisation_can_be_estimated():
    config = CANConfig(filters=(8, 8, 8), discriminator_filters=8)
    assert estimate_memory(CAN(config, 32), 1, 32).step > 0

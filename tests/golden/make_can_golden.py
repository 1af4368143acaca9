"""Writes tests/golden/can.json: what three steps of a small CAN return.

NumPy alone decides weights and patches.

python tests/golden/make_can_golden.py

Numpy's Generator, not TensorFlow's, draws weights and patches, so that the numbers hold for any
version of TensorFlow. Run it again only when the algorithm itself is meant to change, and say so in
the change.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmammo.models.can import CAN, CANConfig

GOLDEN = Path(__file__).with_name("can.json")
CASES = {
    "default": {"average": "responses"},
    "as_printed": {
        "adversarial": "as_printed",
        "average": "losses",
        "l2": "norm",
        "lambda_1": 3.0,
        "lambda_2": 0.5,
    },
}


def losses(case: str, steps: int = 3) -> list[dict[str, float]]:
    """Compute what each of the first steps returns, in float32 and without dropout.

    The learning rate is large enough for three steps to show.
    """
    rng = np.random.default_rng(0)
    can = CAN(
        CANConfig(
            filters=(4, 8, 8), discriminator_filters=4, dropout=0, learning_rate=1e-2, **CASES[case]
        ),
        size=16,
    )
    for network in can.networks.values():
        for weight in network.trainable_variables:
            weight.assign(rng.normal(0, 0.1, weight.shape) + (weight.name == "gamma"))
    batch = {
        "image": tf.constant(rng.random((2, 16, 16, 1)), tf.float32),
        "mask": tf.constant(rng.integers(0, 2, (2, 16, 16, 1)), tf.float32),
    }
    return [
        {name: float(value) for name, value in can.train_step(batch).items()} for _ in range(steps)
    ]


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({case: losses(case) for case in CASES}, indent=1) + "\n", encoding="utf-8"
    )

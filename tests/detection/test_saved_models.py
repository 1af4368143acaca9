"""What detectors' exports share: input, comparison with memory, the card."""

import numpy as np
import pytest
import tensorflow as tf

from tfmammo.detection.saved_models import (
    answer_api,
    compare_answers,
    describe_function,
    make_random_image,
)
from tfmammo.errors import ExportError


def test_an_api_is_given_three_channels_of_grey_levels():
    image = np.array([[[[0.0], [1.0]]]], np.float32)
    answers = answer_api(lambda input_tensor: {"echo": input_tensor}, image)
    np.testing.assert_array_equal(answers["echo"], [[[[0, 0, 0], [255, 255, 255]]]])


def test_the_random_image_is_the_same_every_time():
    image = make_random_image((3, 5))
    assert image.shape == (1, 3, 5, 1) and image.dtype == np.float32
    assert 0 <= image.min() < image.max() < 1
    np.testing.assert_array_equal(image, make_random_image((3, 5)))


def test_answers_may_differ_by_a_thousandth_of_the_largest():
    expected = {"scores": np.array([0.0, 0.5]), "deltas": np.array([0.0, 400.0])}
    close = {"scores": np.array([0.0009, 0.5]), "deltas": np.array([0.3, 400.0])}
    compare_answers(close | {"more": np.ones(3)}, expected)
    for name, values in {"scores": [0.0011, 0.5], "deltas": [0.5, 400.0]}.items():
        with pytest.raises(ExportError, match=f"^the detector's {name} differ between"):
            compare_answers(close | {name: np.array(values)}, expected)


@pytest.mark.slow
def test_a_function_in_the_card_by_hand():
    kernel = tf.Variable(tf.zeros([3, 3, 1, 2]), name="kernel")
    count = tf.Variable(0.0, name="count")

    class Network:
        variables = (kernel, count)

    outputs = {"scores": tf.TensorSpec([None, 7], tf.float32)}
    assert describe_function((None, 64), outputs, Network()) == {
        "inputs": {
            "input_tensor": {
                "shape": [None, None, 64, 3],
                "dtype": "float32",
                "range": [0.0, 255.0],
            }
        },
        "outputs": {"scores": {"shape": [None, 7], "dtype": "float32", "range": None}},
        "variables": ["kernel:0 3x3x1x2", "count:0 scalar"],
    }

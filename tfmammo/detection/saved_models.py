"""How detectors are exported: saved, compared with the network in memory, described in the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfmammo.tracking.export import describe_variables

SAVED_MODEL = "saved_model"  # the folder of an API's export, and its function in the card
ROUNDING = 1e-3  # of answers: a saved graph may merge operations


def make_random_image(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Make an image on which disk and memory are compared, float32 [1, *shape, 1] in [0, 1)."""
    return np.random.default_rng(0).random((1, *shape, 1), np.float32)


def answer_api(function: Callable[..., Any], image: NDArray[np.float32]) -> dict[str, tf.Tensor]:
    """Call a function of "input_tensor", [n, rows, cols, 3] in [0, 255], on images in [0, 1]."""
    return function(input_tensor=tf.constant(255 * np.repeat(image, 3, axis=-1)))


def save_and_load(variables: Sequence[Any], functions: Mapping[str, Any], folder: Path) -> Any:
    """Save functions as a SavedModel's signatures, and load it.

    The variables are saved in order, so that training.initial can read them.
    """
    module = tf.Module()
    module.weights = list(variables)
    signatures = {name: function.get_concrete_function() for name, function in functions.items()}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return tf.saved_model.load(str(folder))


def describe_function(
    shape: Sequence[int | None], outputs: Mapping[str, Any], network: Any
) -> dict[str, Any]:
    """Describe a function of "input_tensor", an image of `shape` px (None: any), for the card."""
    input_tensor = {"shape": [None, *shape, 3], "dtype": "float32", "range": [0.0, 255.0]}
    return {
        "inputs": {"input_tensor": input_tensor},
        "outputs": {
            name: {"shape": tensor.shape.as_list(), "dtype": tensor.dtype.name, "range": None}
            for name, tensor in outputs.items()
        },
        "variables": describe_variables(network),
    }


def letterbox_batch(image: tf.Tensor, shape: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale images by the largest factor with which they fit, and fill the canvas with 0.

    The 0 are below the image or on its right, as in data.whole.

    Returns:
        float32 [n, *shape, 1], and float32 [4], which shares of the canvas's rows and columns the
        image takes: rows, cols, twice.
    """
    size = tf.cast(tf.shape(image)[1:3], tf.float32)
    by_rows = size * shape[0] / size[0]
    by_cols = size * shape[1] / size[1]
    is_tall = size[0] * shape[1] >= size[1] * shape[0]
    scaled = tf.maximum(tf.round(tf.where(is_tall, by_rows, by_cols)), 1.0)
    resized = tf.image.resize(image, tf.cast(scaled, tf.int32), antialias=True)
    canvas = tf.ensure_shape(tf.image.pad_to_bounding_box(resized, 0, 0, *shape), [None, *shape, 1])
    return canvas, tf.tile(scaled / shape, [2])

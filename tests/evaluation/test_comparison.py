"""Models of an evaluation, and what is taken from their cards."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.evaluation import comparison
from tfmammo.evaluation.networks import Network, check_crops, open_network

SIZE = 32


def make_network(**data):
    config = {"data": DataConfig(**data).model_dump(mode="json")}
    return Network("run", Path(), None, {"config": config}, "mask")


def test_data_settings_are_merged_over_those_of_the_card():
    network = make_network(
        preprocess={"contrast": "clahe", "denoise": 1.0},
        size=64,
        split_file="split.json",
        added={"copies": 5},
    )
    merged = network.merge_data({"preprocess": {"denoise": 2.0}, "frame": "loose"})
    assert (merged.preprocess.contrast, merged.preprocess.denoise) == ("clahe", 2.0)
    assert (merged.frame, merged.size) == ("loose", 64)
    # of training alone
    assert merged.split_file is None and merged.added.copies == 0
    assert make_network(records="shards").merge_data({"root": "archive"}).records is None
    with pytest.raises(ConfigError, match="run says: siz"):
        network.merge_data({"siz": 3})


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_models_of_different_paper_splits_are_refused(odd):
    """Equally many copies are held out, but other ones."""
    held_out = [["a-1", "b-2"]] * 3
    held_out[odd] = ["a-1", "b-3"]
    networks = [
        Network(f"run{number}", Path(), None, {"split": "paper", "held_out_ids": ids}, "mask")
        for number, ids in enumerate(held_out)
    ]
    with pytest.raises(DataError, match=f"run{max(odd, 1)}"):
        comparison._remake_paper_split({"CAN": networks}, DataConfig(), None)


def test_what_is_no_model_of_the_evaluation_is_refused(tmp_path):
    class Loud(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 1], tf.float32, "mask")])
        def __call__(self, mask):
            return {"image": 2 * mask}

    model = Loud()
    loud = str(tmp_path / "loud")
    tf.saved_model.save(model, loud, signatures=model.__call__)
    with pytest.raises(ExportError, match="from mask to image"):
        open_network(loud, "image", "mask")
    with pytest.raises(DataError, match="loud: its image is no"):
        open_network(loud, "mask", "image").run("mask", "image", np.ones((1, 8, 8, 1), np.float32))
    with pytest.raises(ExportError, match=r"data\.size"):
        make_network(size=64).run("image", "mask", np.zeros((1, SIZE, SIZE, 1), np.float32))
    with pytest.raises(ExportError, match=r"data\.size.* 64 .*128"):  # before patches are cut
        check_crops([make_network(size=64)], DataConfig(size=128))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="damaged: "):
        open_network(str(tmp_path / "damaged"), "image", "mask")
    layers = keras.layers
    dense = layers.Dense(SIZE * SIZE, activation="sigmoid", kernel_initializer="zeros")
    shape = (SIZE, SIZE, 1)
    parts = [keras.Input(shape), layers.Flatten(), dense, layers.Reshape(shape)]
    keras.Sequential(parts).export(str(tmp_path / "keras"), verbose=False)
    signature = tf.saved_model.load(str(tmp_path / "keras")).signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    fixed = open_network(str(tmp_path / "keras"), name, "output_0")
    values = fixed.run(name, "output_0", np.zeros((2, *shape), np.float32))
    assert values == pytest.approx(0.5)
    with pytest.raises(ExportError, match=r"keras: .*\[2, 16, 16, 1\]"):
        fixed.run(name, "output_0", np.zeros((2, 16, 16, 1), np.float32))

"""What an evaluation takes from a model's card."""

from pathlib import Path

import numpy as np
import pytest

from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, DataError, ExportError
from tfmammo.evaluation import comparison
from tfmammo.evaluation.comparison import Network


def make_network(**data):
    config = {"data": DataConfig(**data).model_dump(mode="json")}
    return Network("run", Path(), None, {"config": config}, "mask")


def test_a_key_of_a_section_leaves_the_others_as_the_card_says():
    network = make_network(preprocess={"contrast": "clahe", "denoise": 1.0}, size=64)
    merged = network.merge_data({"preprocess": {"denoise": 2.0}, "frame": "loose"})
    assert (merged.preprocess.contrast, merged.preprocess.denoise) == ("clahe", 2.0)
    assert (merged.frame, merged.size) == ("loose", 64)


def test_settings_of_a_training_alone_are_dropped():
    network = make_network(split_file="split.json", added={"copies": 5})
    merged = network.merge_data({})
    assert merged.split_file is None and merged.added.copies == 0
    assert make_network(records="shards").merge_data({"root": "archive"}).records is None
    with pytest.raises(ConfigError, match="run says: siz"):
        network.merge_data({"siz": 3})


def test_patches_of_another_size_are_refused_by_their_key():
    network = make_network(size=64)
    with pytest.raises(ExportError, match=r"data\.size"):
        network.run("image", "mask", np.zeros((1, 32, 32, 1), np.float32))


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

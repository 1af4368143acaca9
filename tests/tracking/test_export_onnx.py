"""ONNX files of exports answer as TensorFlow does, or are refused."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.tracking.test_export import SIZE, DropoutModel, Model
from tfmammo.errors import ExportError
from tfmammo.models.contextual import Contextual, ContextualConfig
from tfmammo.tracking.export import CARD, export, load, load_onnx, onnx, write_onnx

pytest.importorskip("tf2onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """An export of three small networks, one with two inputs, and their ONNX files in it."""
    place = export(Model(filters=2), tmp_path_factory.mktemp("exported") / "export", {})
    for name in ("inverter", "critic"):
        write_onnx(place, name, place / f"{name}.onnx")
    return place


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_runtime_answers_as_tensorflow(directory, count):
    random = np.random.default_rng(count)
    image, mask = random.random((2, count, SIZE, SIZE, 1), np.float32)
    inputs_of = {"inverter": {"image": image}, "critic": {"mask": mask, "image": image}}
    for name, inputs in inputs_of.items():
        expected = load(directory, name)(**inputs)
        found = load(directory, name, "onnx")(**inputs)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key].dtype == np.float32
            np.testing.assert_allclose(found[key], values, rtol=1e-5, atol=1e-5)
    # tensors too, in the card's order
    same = load(directory, "critic", "onnx")(tf.constant(mask), tf.constant(image))
    np.testing.assert_array_equal(same["logits"], found["logits"])


def test_writing_leaves_tensorflows_log_as_it_was(directory, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    write_onnx(directory, "inverter", tmp_path / "inverter.onnx")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"


def test_inputs_are_checked_as_tensorflows(directory):
    segment = load(directory, "inverter", "onnx")
    with pytest.raises(ExportError, match=r"image must have the shape \[n, 4, 4, 1\]"):
        segment(np.zeros((1, 5, 4, 1)))
    with pytest.raises(ExportError, match=r"image must be in \[0, 1\]"):
        segment(np.full((1, SIZE, SIZE, 1), np.nan))


def test_a_network_of_images_of_any_size_is_refused(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "export")
    card = json.loads((tmp_path / "export" / CARD).read_text())
    card["functions"]["inverter"]["inputs"]["image"]["shape"] = [None, None, None, 1]
    (tmp_path / "export" / CARD).write_text(json.dumps(card))
    with pytest.raises(ExportError, match="inverter: takes images of any size"):
        write_onnx(tmp_path / "export", "inverter", tmp_path / "inverter.onnx")


@pytest.mark.slow
def test_every_function_of_a_papers_system_has_an_onnx_file(tmp_path):
    values = {"filters": (3, 4, 8), "discriminator_factor": 2, "attention": 8, "border": 2}
    model = Contextual(ContextualConfig(**values, start=32), 32)
    place = export(model, tmp_path / "export", {})
    for name in model.functions():
        # it compares answers
        assert write_onnx(place, name, tmp_path / f"{name}.onnx").stat().st_size > 1000


def test_dropout_at_inference_has_no_onnx_file(tmp_path):
    place = export(DropoutModel(filters=8, dropout=0.5), tmp_path / "export", {})
    with pytest.raises(ExportError, match="generator"):
        write_onnx(place, "generator", tmp_path / "generator.onnx")
    assert not (tmp_path / "generator.onnx").exists()


def test_a_file_that_answers_differently_is_removed(directory, tmp_path, monkeypatch):
    def load_wrong(file):
        right = load_onnx(file)
        return lambda **values: {key: value + 1e-3 for key, value in right(**values).items()}

    monkeypatch.setattr(onnx, "load_onnx", load_wrong)
    with pytest.raises(ExportError, match="inverter: .*ONNX"):
        write_onnx(directory, "inverter", tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_what_cannot_be_read_is_one_sentence(directory, tmp_path):
    with pytest.raises(ExportError, match="function nothing"):
        write_onnx(directory, "nothing", tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"generator\.onnx"):
        load(directory, "generator", "onnx")
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"a\.onnx"):
        load_onnx(tmp_path / "a.onnx")

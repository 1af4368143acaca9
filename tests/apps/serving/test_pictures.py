"""Services: a network, the CAD pipeline and an editor, called as MLflow calls them."""

import base64
import io
import json
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import cv2
import mlflow
import numpy as np
import pydicom
import pytest
import tensorflow as tf
from PIL import Image
from pydantic import ValidationError

from tests.commands import refuse
from tests.exported_detectors import save_detector, write_detector_card
from tests.known_networks import KnownCAN
from tests.small_mammograms import draw_breast
from tfmammo.apps.serving import pictures
from tfmammo.apps.serving.__main__ import lay_out, main, register
from tfmammo.apps.serving.pictures import NetworkConfig, Service, ServiceConfig, gather
from tfmammo.apps.serving.requests import numbering_errors
from tfmammo.archives import coco
from tfmammo.archives.writers import synthetic
from tfmammo.config import DataConfig
from tfmammo.errors import ArchiveError, ConfigError, DataError, ExportError, TrackingError
from tfmammo.inference.pipeline import Finding, PipelineResult
from tfmammo.mammogram import Lesion, trace_borders
from tfmammo.synthesis.editor import EditorConfig
from tfmammo.tracking.export import export, load, load_onnx, read_card

SIZE = 16
BREAST = draw_breast(0)[..., 0]


def encoded(image, bits=16):
    values = np.rint(image * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)
    return base64.b64encode(synthetic.encode_png(values)).decode()


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text, validate=True))))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function (frame) -> the export of a network whose training patches were cut so."""

    def make(frame):
        data = DataConfig(size=SIZE, window=(0, 1), frame=frame).model_dump(mode="json")
        card = {"step": 1, "config": {"data": data, "model": {}}, "train_patients": []}
        model = KnownCAN("can", SIZE, level=0.5, weight=0.5, bias=0.0, steepness=40.0)
        return export(model, tmp_path_factory.mktemp("can") / "export", card)

    return make


@pytest.fixture(scope="module")
def can(exported):
    return exported("loose")


def loaded(handle, **values):
    network = NetworkConfig(handle=str(handle), **values)
    return Service.load(ServiceConfig(name="can-inverter", network=network))


def pixels(image):
    return {"pixels": np.asarray(image).tolist()}


@pytest.fixture(scope="module")
def inverter(can):
    """Takes crops of any size."""
    return loaded(can, scaled=True)


@pytest.fixture(scope="module")
def synthesiser(tiny_infilling):
    system = EditorConfig(renderer="infilling", generator=str(tiny_infilling(size=32, padding=20)))
    return Service.load(ServiceConfig(name="synthesis", system=system))


def test_a_contextual_gan_is_served_with_its_best_weights(tiny_contextual, tmp_path):
    """As an editor takes them."""
    run = tmp_path / "run"
    for name, step in (("export", 200), ("best", 100)):
        shutil.copytree(tiny_contextual(), run / name)
        path = run / name / "card.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "step": step}))
    system = EditorConfig(renderer="contextual", generator=str(run))
    gather(ServiceConfig(name="editor", system=system), tmp_path / "service")
    assert read_card(tmp_path / "service/generator")["step"] == 100


def square(rows, cols):
    image = np.full((rows, cols), 0.1, np.float32)
    image[rows // 4 : 3 * rows // 4, cols // 4 : 3 * cols // 4] = 0.9
    return image


@pytest.mark.parametrize(("rows", "cols"), [(SIZE, SIZE), (64, 64), (48, 80)])
def test_an_image_is_outlined_at_its_own_size(inverter, rows, cols):
    image = square(rows, cols)
    text = encoded(image)
    forms = [{"image": text}, pixels(image), {"image": encoded(image, 8)}]
    # as `base64 FILE` writes it, in lines, and as a page does
    forms.append({"image": base64.encodebytes(base64.b64decode(text)).decode()})
    forms.append({"image": f" data:image/png;base64,{text}\n"})
    for answer in inverter.answer(forms):
        mask = decoded(answer["mask"])
        assert mask.shape == (rows, cols) and decoded(answer["probability"]).shape == (SIZE, SIZE)
        assert ((mask > 0) != (image > 0.5)).sum() <= 4  # a corner's pixel each is rounded off
        assert answer["box"] == [rows // 4, cols // 4, 3 * rows // 4, 3 * cols // 4]


def test_a_network_takes_the_sizes_of_its_training_patches_only(exported):
    """Least of all a whole mammogram, for which its mask would be nonsense."""
    strict = loaded(exported("square"))
    good = pixels(square(SIZE, SIZE))
    for rows, cols in ((1024, 832), (SIZE, SIZE + 1)):
        with pytest.raises(ArchiveError, match=rf"^inputs\[1\]: .* {rows} x {cols} px"):
            strict.answer([good, pixels(np.zeros((rows, cols)))])
    assert strict.answer([good])[0]["box"] == [SIZE // 4, SIZE // 4, 3 * SIZE // 4, 3 * SIZE // 4]
    crops = loaded(exported("square"), scaled=True)
    assert crops.answer([pixels(square(64, 64))])[0]["box"] == [16, 16, 48, 48]
    with pytest.raises(ArchiveError, match=r"^inputs\[0\]: .*square crops"):
        crops.answer([pixels(square(32, 64))])
    (whole,) = loaded(exported("full")).answer([pixels(square(48, 80))])
    assert whole["box"] == [12, 20, 36, 60]


def test_images_come_in_groups_of_eight_and_work_stops_when_the_client_has_gone(can):
    service = loaded(can)
    seen = []
    call = service.call
    service.call = lambda **named: seen.append(len(named["image"])) or call(**named)
    images = [pixels(np.full((SIZE, SIZE), 0.1))] * 27
    images[13] = pixels(square(SIZE, SIZE))
    boxes = [answer["box"] for answer in service.answer(images)]
    assert seen == [8, 8, 8, 3] and [number for number, box in enumerate(boxes) if box] == [13]
    seen.clear()
    # each image is read, then two groups are computed
    proceed = mock.Mock(side_effect=[None] * (27 + 2) + [TimeoutError])
    with pytest.raises(TimeoutError):
        service.answer(images, proceed)
    assert seen == [8, 8]


def test_the_number_of_images_and_of_pixels_is_limited(can, monkeypatch):
    service = loaded(can, scaled=True)
    tiny = {"image": encoded(square(4, 4), 8)}
    for count in (0, pictures.MAX_IMAGES + 1):
        with pytest.raises(ConfigError, match=f"inputs holds {count} images"):
            service.answer([tiny] * count)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40)
    with pytest.raises(ConfigError, match=r"inputs\[2\]: .*48 px"):
        service.answer([tiny] * 4)


def test_served_probabilities_are_the_networks(inverter, can):
    image = np.random.default_rng(1).random((SIZE, SIZE)).astype(np.float32)
    (answer,) = inverter.answer([pixels(image)])
    network = tf.saved_model.load(str(can / "inverter")).signatures["serving_default"]
    expected = network(image=tf.constant(image[None, ..., None]))["mask"].numpy()[0, ..., 0]
    np.testing.assert_allclose(decoded(answer["probability"]) / 65535, expected, atol=1e-5)


def test_the_generator_goes_from_masks_to_patches(can):
    service = loaded(can, source="mask", scaled=True)
    (answer,) = service.answer([{"image": encoded(square(64, 64) > 0.5, 8)}])
    expected = 0.5 * (square(SIZE, SIZE) > 0.5)
    np.testing.assert_allclose(decoded(answer["image"]) / 65535, expected, atol=1e-5)


def test_a_lesion_is_inserted(synthesiser, tmp_path):
    place = {"laterality": "L", "centre": [100, 60], "size": [22, 18], "shape": "oval"}
    request = {"image": encoded(BREAST), "seed": 5, **place}
    answer, same = synthesiser.answer([request, request])
    assert answer == same  # the number of an upload in its request does not matter
    assert json.loads(json.dumps(answer)) == answer  # as the server sends it
    before = np.rint(BREAST * 65535)
    image = decoded(answer["image"])
    inside = decoded(answer["mask"]) > 0
    assert answer["box"] == answer["recipe"]["lesions"][0]["box"] and answer["kind"] == "mass"
    assert np.abs(image[inside] - before[inside]).mean() > 6000
    (dicom,) = synthesiser.answer([request | {"format": "dicom"}])
    read = pydicom.dcmread(io.BytesIO(base64.b64decode(dicom["image"])))
    np.testing.assert_array_equal(read.pixel_array, image)
    assert read.SyntheticData == "YES"


def truncated():
    return base64.b64encode(base64.b64decode(encoded(square(32, 32)))[:60]).decode()


def bomb():
    """A PNG of a few bytes that claims to be of 60,000 x 60,000 px."""
    content = bytearray(base64.b64decode(encoded(square(8, 8))))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, "give image or pixels"),
        ({"image": "", "pixels": [[0.5]]}, "give image or pixels"),
        ({"image": "§§§"}, "image is not in base64"),
        ({"image": ""}, "can't be read as an image"),
        ({"image": base64.b64encode(b"MZ" * 500).decode()}, "can't be read as an image"),
        (
            {"image": base64.b64encode(b"\0" * 128 + b"DICM" + b"\xff" * 500).decode()},
            "transfer syntax is missing",
        ),
        ({"image": truncated()}, "can't be read as an image"),
        ({"image": bomb()}, "can't be read|more than"),
        ({"pixels": [[0.1], [0.1, 0.2]]}, "pixels"),
        ({"pixels": [[0.1, 1.5]]}, r"pixels.*\[0, 1\]"),
        ({"pixels": [[0.1, float("nan")]]}, "pixels.*nan"),
        ({"pixels": [["0.5"]]}, "pixels"),
        ({"pixels": [[True]]}, "pixels"),
        ({"pixels": [[10**400]]}, "pixels"),
        ({"pixels": [[[0.5]]]}, "pixels"),
        ({"pixels": [[0.5, 0.5]], "laterality": "left"}, "laterality"),
        ({"pixels": [[0.5, 0.5]], "patient": "Doe"}, "patient"),
        ({"pixels": [[0.5, 0.5]], "spacing": [0.1, -1]}, "spacing"),
    ],
)
def test_a_bad_image_is_one_sentence(inverter, item, message):
    good = pixels(square(8, 8))
    with pytest.raises(ValueError, match=message) as caught:
        inverter.answer([good, item])
    said = str(caught.value)
    assert said.startswith("inputs[1]: ") and "\n" not in said and len(said) < 600
    assert tempfile.gettempdir() not in said and type(caught.value).__module__.startswith("tfmammo")


def test_no_error_names_a_temporary_file():
    place = f"{tempfile.gettempdir()}/tmp_a-1/0"
    with pytest.raises(ArchiveError) as caught, numbering_errors(0):
        raise ArchiveError(f"{place}: is no image ('{place}.png', {place})")
    assert str(caught.value) == "inputs[0]: the file: is no image ('the file', the file)"


def test_an_edit_that_is_impossible_names_its_number(synthesiser):
    request = {"pixels": BREAST.tolist(), "centre": [190, 140], "size": [22, 18], "shape": "oval"}
    with pytest.raises(DataError, match=r"^inputs\[0\]"):
        synthesiser.answer([request])
    with pytest.raises(ConfigError, match=r"^inputs\[0\]: .*centre"):
        synthesiser.answer([pixels(BREAST)])


EDITOR = {"renderer": "poisson", "lesions": {"name": "phantom"}}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "give one of"),
        ({"network": {"handle": "x"}, "system": EDITOR}, "give one of network"),
        ({"name": "../x", "network": {"handle": "x"}}, "name"),
        ({"network": {"handle": "x"}, "alias": "1 2"}, "alias"),
    ],
)
def test_a_wrong_config_is_refused(values, word):
    with pytest.raises(ValidationError, match=word):
        ServiceConfig.model_validate({"name": "x", **values})


@pytest.mark.parametrize("place", ["run/export", "run/export/saved_model"])
def test_a_detector_of_the_package_is_copied_and_another_is_not(tmp_path, place):
    """Both have a saved_model/saved_model.pb; ours has a card beside it."""
    export_folder = tmp_path / "run/export"
    save_detector(export_folder / "saved_model", [], [])
    pipeline = {"segmenter": None, "classifier": None}
    config = {"name": "x", "pipeline": {"detector": str(tmp_path / place), **pipeline}}
    (tmp_path / "foreign").mkdir()
    pictures.gather(ServiceConfig.model_validate(config), tmp_path / "foreign")
    assert not (tmp_path / "foreign/detector").exists()
    write_detector_card(export_folder, DataConfig(size=SIZE))
    (tmp_path / "own").mkdir()
    pictures.gather(ServiceConfig.model_validate(config), tmp_path / "own")
    assert (tmp_path / "own/detector/card.json").is_file()
    assert pictures.unpack(tmp_path / "own").pipeline.detector == str(tmp_path / "own/detector")


def test_an_unsuitable_model_is_refused(tiny_infilling, tmp_path):
    for handle, error in ((str(tiny_infilling()), ExportError), ("nowhere", TrackingError)):
        with pytest.raises(error):
            loaded(handle)
    for content in (None, "[1]"):
        if content:
            (tmp_path / pictures.FILE).write_text(content)
        with pytest.raises(ConfigError, match=str(tmp_path)):
            pictures.unpack(tmp_path)
    (tmp_path / pictures.FILE).write_text('{"name": "x", "network": {"handle": "x", "old": 1}}')
    with pytest.raises(ConfigError, match=r"network\.old: unknown key.*register it again"):
        pictures.unpack(tmp_path)


def test_a_registered_service_is_whole_and_answers_through_mlflow(can, inverter, tracking_uri):
    network = NetworkConfig(handle=str(can), scaled=True)
    config = ServiceConfig(name="can-inverter", network=network, tracking_uri=tracking_uri)
    assert [register(config), register(config)] == ["1", "2"]
    client = mlflow.MlflowClient(tracking_uri)
    best = client.get_model_version_by_alias("tfmammo-can-inverter", "best")
    assert str(best.version) == "2"
    place = client.get_model_version_download_uri("tfmammo-can-inverter", "2")
    model = mlflow.pyfunc.load_model(place)
    request = pixels(square(32, 32))
    assert model.predict([request]) == inverter.answer([request])
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"inputs\[0\]") as caught:
        model.predict([{"laterality": "L"}])
    assert caught.value.get_http_status_code() == 400
    folder = mlflow.artifacts.download_artifacts(place)
    (stored,) = Path(folder).rglob(pictures.FILE)
    text = stored.read_text()
    assert json.loads(text)["network"]["handle"] == "handle"
    assert str(can) not in text and tracking_uri not in text


def test_a_service_answers_through_onnx_runtime(can, inverter, tracking_uri):
    pytest.importorskip("tf2onnx", reason="the extra `onnx` is not installed")
    network = NetworkConfig(handle=str(can), scaled=True, runtime="onnx")
    config = ServiceConfig(name="can-onnx", network=network, tracking_uri=tracking_uri)
    register(config)
    client = mlflow.MlflowClient(tracking_uri)
    place = client.get_model_version_download_uri("tfmammo-can-onnx", "1")
    folder = Path(mlflow.artifacts.download_artifacts(place))
    assert [path.name for path in folder.rglob("*.onnx")] == ["inverter.onnx"]
    (answer,) = mlflow.pyfunc.load_model(place).predict([pixels(square(32, 32))])
    (expected,) = inverter.answer([pixels(square(32, 32))])
    assert answer["mask"] == expected["mask"] and answer["box"] == expected["box"]
    # 16 bits: a unit in the last place may differ
    apart = decoded(answer["probability"]).astype(int) - decoded(expected["probability"])
    assert np.abs(apart).max() <= 1
    with pytest.raises(ExportError, match=r"inverter\.onnx"):
        Service.load(config)  # of the export itself, which was not registered


@pytest.mark.parametrize(
    ("name", "function"),
    [("../../out", "inverter"), ("a/b", "inverter"), ("can", "../inverter"), ("..", "inverter")],
)
def test_names_in_a_card_stay_within_the_folder(can, tmp_path, name, function):
    """Neither by the name of the system nor by that of a function."""
    place = Path(shutil.copytree(can, tmp_path / "run" / "export"))
    card = json.loads((place / "card.json").read_text())
    card["name"] = name
    card["functions"] = {function: card["functions"]["inverter"]}
    (place / "card.json").write_text(json.dumps(card))
    shutil.copytree(place / "inverter", tmp_path / "run" / "inverter")
    with pytest.raises(ExportError, match="card.json"):
        lay_out(str(place), tmp_path / "deep" / "er" / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_tensorflow_servings_layout(can, tmp_path, capsys):
    folders = lay_out(str(can), tmp_path / "models", version=3)
    names = ("can-generator", "can-inverter")
    assert sorted(folders) == [tmp_path / f"models/{name}/3" for name in names]
    network = tf.saved_model.load(str(tmp_path / "models/can-inverter/3"))
    answer = network.signatures["serving_default"](image=tf.zeros([1, SIZE, SIZE, 1]))
    assert float(tf.reduce_max(answer["mask"])) < 1e-6
    text = (tmp_path / "models/models.config").read_text()
    assert 'name: "can-inverter" base_path: "/models/can-inverter"' in text
    assert text.count("config {") == 2
    with pytest.raises(TrackingError, match="is not empty"):
        lay_out(str(can), tmp_path / "models")
    words = ["layout", "--model", str(can), "--output", str(tmp_path / "new"), "--version", "-1"]
    assert "-1 is no whole number of 1 or more" in refuse(capsys, main, words)


def test_the_command(can, tracking_uri, tmp_path, capsys):
    config = tmp_path / "service.yaml"
    config.write_text(f"name: named\nnetwork: {{handle: {can}}}\nalias: trial\n")
    arguments = ["register", "--config", str(config), "--set", f"tracking_uri={tracking_uri}"]
    main(arguments)
    assert "models:/tfmammo-named@trial is version 1" in capsys.readouterr().out
    assert "nowhere" in refuse(capsys, main, [*arguments, "network.handle=nowhere"])


def test_onnx_files_of_every_function(can, tmp_path, capsys):
    pytest.importorskip("tf2onnx", reason="the extra `onnx` is not installed")
    main(["onnx", "--model", str(can), "--output", str(tmp_path / "files")])
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert sorted(names) == ["can-generator.onnx", "can-inverter.onnx"]
    image = np.random.default_rng(0).random((2, SIZE, SIZE, 1), np.float32)
    answer = load_onnx(tmp_path / "files/can-inverter.onnx")(image=image)["mask"]
    np.testing.assert_allclose(answer, load(can, "inverter")(image)["mask"], atol=1e-5)


def test_findings_of_the_pipeline(monkeypatch):
    mask = np.zeros((200, 150), np.uint8)
    cv2.circle(mask, (60, 100), 12, 1, -1)
    box = (88, 48, 113, 73)
    lesion = Lesion("mass", box, trace_borders(mask))
    findings = (Finding("mass", 0.9, box, lesion), Finding("mass", 0.6, (10, 10, 20, 20)))

    class FixedPipeline:
        def predict(self, mammogram):
            return PipelineResult(mammogram, mammogram.pixels(), findings)

    monkeypatch.setattr(pictures, "build_report", lambda result, _: len(result.findings))
    service = pictures.PipelineService(FixedPipeline())
    image = pixels(BREAST)
    shown, plain = service.answer([image | {"overlay": True}, image])
    assert shown["report"] == 2 and shown["masks"][1] is None
    assert json.loads(json.dumps(plain)) == plain
    np.testing.assert_array_equal(coco.decode(shown["masks"][0], "mask"), mask)
    assert decoded(shown["overlay"]).shape[2] == 3 and "overlay" not in plain

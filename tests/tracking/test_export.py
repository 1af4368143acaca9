"""Exports: written, checked, replaced, read back, refused."""

import json
import pickle
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.known_networks import KnownModel, make_functions
from tfmammo.errors import ExportError
from tfmammo.mammogram import key_check
from tfmammo.nn.networks import export_function
from tfmammo.tracking.export import assign, compare_answers, export, find_function, load, read_card

SIZE = 4


class Noise(keras.layers.Layer):
    """Adds noise that no saved state determines, so that no two calls agree."""

    def call(self, x):
        return x + tf.random.uniform(tf.shape(x))


class Model(KnownModel):
    """A generator from mask to image, an inverter from image to mask, and a critic of pairs."""

    random = None

    def __init__(self, filters=1, dropout=0.0, extra=None, scale=1.0, name="tiny"):
        critic = [keras.Input((SIZE, SIZE, 2)), keras.layers.Conv2D(1, 3)]
        networks = {
            "generator": make_network(filters, dropout, extra),
            "inverter": make_network(filters, 0.0, None),
            "critic": keras.Sequential(critic),
        }
        generator = networks["generator"]
        # A fresh convolution can be near 0; these values are known instead.
        generator.layers[0].bias.assign(tf.fill([filters], 0.25))
        generate = export_function(
            lambda mask: {"image": scale * generator(mask, training=self.random)},
            mask=(SIZE, SIZE, 1),
        )
        super().__init__(name, networks, make_functions(networks, SIZE) | {"generator": generate})


def make_network(filters, dropout, extra):
    layers = [keras.Input((SIZE, SIZE, 1)), keras.layers.Conv2D(filters, 1)]
    layers += [keras.layers.BatchNormalization()]
    layers += [keras.layers.Dropout(dropout)] * bool(dropout) + [extra] * bool(extra)
    activation = keras.layers.Activation("sigmoid", dtype="float32")
    return keras.Sequential([*layers, keras.layers.Conv2D(1, 1), activation])


class DropoutModel(Model):
    """Draws dropout at inference too, as Pix2Pix does."""

    random = True


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and its export, for tests that only read."""
    model = Model(filters=2)
    folder = tmp_path_factory.mktemp("exported") / "export"
    return model, export(model, folder, {"name": "can", "step": 1})


@pytest.fixture
def directory(exported, tmp_path):
    """A copy of the export, alone in its folder, for tests that change it."""
    return Path(shutil.copytree(exported[1], tmp_path / "export"))


@pytest.fixture
def batch():
    return np.random.default_rng(1).random((3, SIZE, SIZE, 1), np.float32)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_export_answers_as_a_hand_computed_network(tmp_path, batch):
    model = Model()
    network = model.networks["inverter"]
    first, norm, second = network.layers[:3]
    first.kernel.assign([[[[2.0]]]])
    first.bias.assign([-1.0])
    norm.moving_mean.assign([0.5])
    second.kernel.assign([[[[-3.0]]]])
    second.bias.assign([0.125])
    directory = export(model, tmp_path / "export", {"step": 7})
    normalised = (2 * batch - 1 - 0.5) / np.sqrt(1 + norm.epsilon)
    expected = 1 / (1 + np.exp(3 * normalised - 0.125))
    segment = load(directory, find_function(directory, {"image"}, {"mask"}))
    np.testing.assert_allclose(segment(batch)["mask"], expected, rtol=1e-5)
    np.testing.assert_allclose(segment(image=tf.constant(batch))["mask"], expected, rtol=1e-5)
    assert leftovers(tmp_path) == ["export"]


def test_inputs_go_by_name_or_by_the_cards_order(exported, batch):
    model, directory = exported
    mask, image = batch, 1 - batch
    eager = model.networks["critic"](tf.concat([mask, image], -1)).numpy()
    critic = load(directory, "critic")
    for answer in (critic(mask, image), critic(image=image, mask=mask)):
        np.testing.assert_allclose(answer["logits"], eager, rtol=1e-5, atol=1e-6)
    assert not np.allclose(critic(image, mask)["logits"], eager, atol=1e-3)


@pytest.mark.parametrize(
    "arguments, named, message",
    [
        ((), {}, "takes mask, image, got 0"),
        ((np.zeros((1, 4, 4, 1)),), {"mask": np.zeros((1, 4, 4, 1))}, "takes mask, image, got 1"),
        ((np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 5, 1))), {}, r"image .*\[n, 4, 4, 1\]"),
        ((np.zeros((4, 4, 1)), np.zeros((1, 4, 4, 1))), {}, r"mask must have the shape"),
    ],
)
def test_wrong_inputs_are_one_sentence(exported, arguments, named, message):
    critic = load(exported[1], "critic")
    with pytest.raises(ExportError, match=message):
        critic(*arguments, **named)


@pytest.mark.parametrize("kind", [np.asarray, tf.constant], ids=["numpy", "tensorflow"])
@pytest.mark.parametrize("bad", [255.0, -0.01, np.nan])
def test_values_outside_the_range_are_one_sentence(exported, kind, bad):
    """A picture times 255 would otherwise be answered, and look right."""
    values = np.full((2, SIZE, SIZE, 1), 0.5, np.float32)
    values[1, 2, 3] = bad
    said = rf"inverter: image must be in \[0, 1\], but reaches from .*{bad:g}"
    with pytest.raises(ExportError, match=said):
        load(exported[1], "inverter")(kind(values))
    with pytest.raises(ExportError, match=r"critic: mask must be in \[0, 1\]"):
        load(exported[1], "critic")(mask=kind(values), image=kind(np.zeros_like(values)))


def test_values_at_the_ends_of_the_range_and_whole_numbers_are_taken(exported):
    inverter = load(exported[1], "inverter")
    ends = np.zeros((1, SIZE, SIZE, 1), np.float32)
    ends[0, 0] = 1
    expected = inverter(ends)["mask"]
    for same in (ends.astype(np.uint8), ends.astype(np.float64), ends > 0):
        np.testing.assert_array_equal(inverter(same)["mask"], expected)
    rounded = inverter(ends * np.float32(1 + 5e-6))["mask"]  # what resampling makes of 1
    np.testing.assert_allclose(rounded, expected, atol=1e-5)
    assert len(inverter(np.zeros((0, SIZE, SIZE, 1), np.float32))["mask"]) == 0


def test_the_card_describes_functions_and_keeps_what_it_was_given(tmp_path):
    given = {"name": "can", "step": np.int64(40), "format": 99, "patients": ("b1", "a0")}
    given["metrics"] = {"validation_dice": np.float32(0.5), "loss": float("nan")}
    given["config"] = {"data": {"root": Path("some/where"), "percentiles": (0.5, 99.5)}}
    directory = export(Model(filters=2), tmp_path / "export", given)
    text = (directory / "card.json").read_text()
    assert "NaN" not in text, "that is no JSON"
    card = read_card(directory)
    assert card == json.loads(text)
    expected = {
        "format": 1,
        "id_key": key_check(),
        "name": "can",
        "step": 40,
        "metrics": {"validation_dice": 0.5, "loss": None},
        "patients": ["b1", "a0"],
        "config": {"data": {"root": "some/where", "percentiles": [0.5, 99.5]}},
        # 1x1 convolution to two channels 4, normalisation 8, 1x1 convolution to one 3; a 3x3
        # convolution of two channels 19
        "networks": {"generator": 15, "inverter": 15, "critic": 19},
    }
    assert {key: card[key] for key in expected} == expected
    assert list(card["versions"]) == ["tensorflow", "keras", "numpy", "Python"]
    critic = card["functions"]["critic"]
    square = {"shape": [None, 4, 4, 1], "dtype": "float32", "range": [0.0, 1.0]}
    assert critic["inputs"] == {"mask": square, "image": square}
    logits = {"shape": [None, 2, 2, 1], "dtype": "float32", "range": None}
    assert critic["outputs"] == {"logits": logits}
    assert critic["variables"] == ["kernel 3x3x2x1", "bias 1"]
    assert card["serves"] == "inverter", "segmentation, unless told otherwise"
    other = read_card(export(Model(name="pix"), directory, {"serves": "critic"}))
    assert (other["serves"], other["name"]) == ("critic", "pix")


def make_half(policy):
    keras.config.set_dtype_policy(policy)
    return Model()


def make_spoilt():
    model = Model()
    model.networks["inverter"].layers[0].bias.assign([np.nan])
    return model


def make_misnamed():
    model = Model()
    functions = model.functions()
    model.networks = {"renderer": model.networks["generator"], "critic": model.networks["critic"]}
    model.functions = lambda: {"generator": functions["generator"]}
    return model


@pytest.mark.parametrize(
    ("make", "card", "named"),
    [
        (lambda: make_half("mixed_bfloat16"), {}, "generator .*bfloat16"),
        (lambda: make_half("mixed_float16"), {}, "generator .*float16"),
        (lambda: Model(extra=Noise()), {}, "generator: image differs"),
        (make_spoilt, {}, "inverter: mask .*nan"),
        (lambda: Model(scale=4.0), {}, r"generator: image .*\[0, 1\]"),
        (make_misnamed, {}, "function generator"),
        (Model, {"serves": "renderer"}, "renderer"),
        *((Model, {"name": name}, "name") for name in ("../out", "a/b", "..", "", 'a"b')),
    ],
)
def test_what_can_not_be_exported_leaves_the_older_export(tmp_path, directory, make, card, named):
    with pytest.raises(ExportError, match=named):
        export(make(), directory, {"step": 2, **card})
    assert read_card(directory)["step"] == 1 and leftovers(tmp_path) == ["export"]


def test_outputs_are_compared_on_their_own_scale():
    large = np.array([1000.0, 0.0], np.float32)
    found = {"features": large + np.float32(5e-3), "more": large}
    compare_answers("n", found, {"features": large})
    with pytest.raises(ExportError, match="^n: features differs by up to 0.02"):
        compare_answers("n", {"features": large + np.float32(0.02)}, {"features": large})
    compare_answers("n", {"features": large + np.float32(0.02)}, {"features": large}, 1e-4)
    found = {"features": np.float32([1000.15, 0])}
    compare_answers("n", found, {"features": large}, 1e-4)
    with pytest.raises(ExportError, match="^n: features differs by up to 0.15"):
        compare_answers("n", found, {"features": large}, 1e-4, of_each=False)
    with pytest.raises(ExportError, match="^n: mask differs by up to 3e-05"):
        compare_answers("n", {"mask": large / 1000 + np.float32(3e-5)}, {"mask": large / 1000})


def test_dropout_at_inference_draws_alike_and_the_model_is_left_as_it_was(tmp_path, batch):
    model = DropoutModel(filters=8, dropout=0.5)
    variables = [one for network in model.networks.values() for one in network.variables]
    before = [variable.numpy() for variable in variables]
    generate = load(export(model, tmp_path / "export", {}), "generator")
    for old, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    # or this test shows nothing
    assert not np.allclose(generate(batch)["image"], generate(batch)["image"])


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for place, said in (
        (tmp_path, "exists and is not an export"),
        (tmp_path / "thesis.tex", "exists and is not an export"),
        (tmp_path / "thesis.tex" / "export", "can't be written"),
    ):
        with pytest.raises(ExportError, match=said):
            export(Model(), place, {})
    assert leftovers(tmp_path) == ["thesis.tex"]


def test_a_crash_between_the_two_moves_leaves_the_old_export_readable(
    tmp_path, exported, directory, batch
):
    directory.rename(tmp_path / ".export.old")
    assert read_card(directory)["step"] == 1
    expected = exported[0].networks["inverter"](batch)
    np.testing.assert_allclose(load(directory, "inverter")(batch)["mask"], expected, rtol=1e-5)
    assign(Model(filters=2).networks, directory)
    export(Model(), directory, {"step": 2})
    assert read_card(directory)["step"] == 2 and leftovers(tmp_path) == ["export"]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "contains no export"),
        ("{", "can't be read"),
        ('{"format": 2}', "format 1"),
        ("[]", "format 1"),
        ('{"format": 1}', "card.json: .*name: .*functions: "),
        ("[" * 5000, "can't be read"),
    ],
)
def test_a_missing_damaged_or_newer_card_is_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    with pytest.raises(ExportError, match=message):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"functions": []}, "functions"),
        ({"functions": {"inverter": {"inputs": {}}}}, "functions.inverter.outputs"),
        ({"train_patients": 3}, "train_patients"),
        ({"train_patients": [["p"]]}, "train_patients.0"),
        ({"config": []}, "config"),
        ({"networks": {"inverter": "many"}}, "networks.inverter"),
    ],
)
def test_a_card_of_wrong_form_names_the_key(directory, change, key):
    path = directory / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ExportError, match=rf"card.json: is no card \({key}: "):
        read_card(directory)


def test_what_an_export_has_not_got_is_named(exported):
    directory = exported[1]
    assert find_function(directory, {"mask"}, {"image"}) == "generator"
    with pytest.raises(ExportError, match="image, mask"):
        find_function(directory, {"mask", "image"}, {"image"})
    with pytest.raises(ExportError, match="function renderer"):
        load(directory, "renderer")


def test_assign_copies_every_weight_into_a_model_of_another_precision(tmp_path):
    model = DropoutModel(filters=3, dropout=0.5)
    for network in model.networks.values():
        for variable in network.variables:
            if variable.dtype == "float32":  # all but the dropout's random state
                variable.assign(np.random.default_rng(0).random(variable.shape, np.float32) + 0.5)
    directory = export(model, tmp_path / "export", {})
    keras.config.set_dtype_policy("mixed_bfloat16")
    other = DropoutModel(filters=3, dropout=0.5)
    assign(other.networks, directory)
    for name, network in model.networks.items():
        for variable, copy in zip(network.variables, other.networks[name].variables, strict=True):
            is_weight = variable.dtype == "float32"
            assert np.array_equal(variable.numpy(), copy.numpy()) == is_weight


def test_assign_names_what_does_not_fit_and_changes_nothing(exported):
    fits = Model(filters=2).networks
    before = fits["generator"].layers[0].kernel.numpy()
    wide = "inverter has variable 0 of name and shape kernel 1x1x1x2, this one has kernel 1x1x1x3"
    wider = fits | {"inverter": Model(filters=3).networks["inverter"]}
    for networks, said in (
        (wider, f"a model for can whose {wide}"),
        ({name: fits[name] for name in ("generator", "critic")}, "critic, generator$"),
        (fits | {"critic": fits["generator"]}, "critic has 2"),
    ):
        with pytest.raises(ExportError, match=said):
            assign(networks, exported[1])
    np.testing.assert_array_equal(fits["generator"].layers[0].kernel.numpy(), before)


@pytest.mark.parametrize("damaged", ["saved_model.pb", "variables/variables.index"])
def test_a_damaged_saved_model_is_one_sentence(directory, damaged):
    (directory / "inverter" / damaged).write_bytes(b"\x00\xffnonsense")
    with pytest.raises(ExportError, match="inverter: the SavedModel"):
        load(directory, "inverter")


def test_reading_runs_no_pickle(exported, batch, monkeypatch):
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("something was unpickled"))
    assert load(exported[1], "inverter")(batch)["mask"].shape == batch.shape
    assign(Model(filters=2).networks, exported[1])

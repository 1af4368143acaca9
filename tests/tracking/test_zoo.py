"""The zoo: packing, unpacking, fetching, entries, and the networks that come with the package."""

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.commands import refuse
from tests.known_networks import KnownModel
from tfmammo import filesystem
from tfmammo.apps.zoo import __main__ as command
from tfmammo.apps.zoo import page
from tfmammo.errors import ConfigError, ExportError, TrackingError
from tfmammo.mammogram import hash_id
from tfmammo.nn.networks import export_function
from tfmammo.synthesis.generators import load_mask_generator
from tfmammo.tracking import zoo
from tfmammo.tracking.export import (
    export,
    get_training_patients,
    load,
    load_identified,
    read_card,
)
from tfmammo.tracking.export.card import PACKED
from tfmammo.tracking.models import resolve
from tfmammo.tracking.zoo import entries, fetching, packing

SIZE = 8
ENTRY = {
    **dict.fromkeys(("title", "data", "attribution", "memorization"), "of a test"),
    "paper": "can",
    "training": "python train/can.py --config configs/can.yaml",
    "failures": ["everything"],
    "file": "tiny.zip",
}


def make_model():
    """Make a 3x3 convolution, and a discriminator that nobody needs afterwards."""
    shape = (SIZE, SIZE, 1)
    networks = {}
    for name in ("generator", "discriminator"):
        layer = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")
        networks[name] = keras.Sequential([keras.Input(shape), layer])
    kernel, bias = networks["generator"].weights
    # 0.1 is none of the numbers of half precision; 1e-6 is smaller than its smallest steps
    kernel.assign(np.full(kernel.shape, 0.1))
    bias.assign(np.full(bias.shape, 1e-6))
    functions = {
        "generator": export_function(
            lambda mask: {"image": networks["generator"](mask)}, mask=shape
        ),
        "discriminator": export_function(
            lambda image: {"logits": networks["discriminator"](image)}, image=shape
        ),
    }
    return KnownModel("tiny", networks, functions)


@pytest.fixture
def exported(tmp_path):
    card = {"name": "tiny", "step": 5, "train_patients": ["ada"], "metrics": {"dice": 0.8167}}
    return export(make_model(), tmp_path / "export", card)


@pytest.fixture
def shelf(tmp_path, monkeypatch, exported):
    """A zoo with one network, and a cache of its own."""
    folder = tmp_path / "networks"
    folder.mkdir()
    for module in (entries, fetching, command):
        monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setenv(filesystem.CACHE, str(tmp_path / "cache"))
    packing.pack(exported, folder / "tiny.zip")
    content = (folder / "tiny.zip").read_bytes()
    known = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "tiny.json").write_text(json.dumps(ENTRY | known))
    return folder


def test_packed_network_answers_with_kernels_of_half_precision(exported, tmp_path):
    for name in ("tiny.zip", "same.zip"):
        packing.pack(exported, tmp_path / name)
    assert (tmp_path / "tiny.zip").read_bytes() == (tmp_path / "same.zip").read_bytes()
    packing.unpack(tmp_path / "tiny.zip", tmp_path / "again")
    mask = np.zeros((1, SIZE, SIZE, 1), np.float32)
    mask[0, 4, 4] = 1
    image = load(tmp_path / "again", "generator")(mask)["image"]
    # one pixel of the mask under the kernel: sigmoid(half(0.1) + 1e-6), with the bias unrounded
    expected = 1 / (1 + np.exp(-(np.float64(np.float16(0.1)) + 1e-6)))
    assert image[0, 4, 4, 0] == pytest.approx(expected, abs=1e-7)
    assert image[0, 0, 0, 0] == pytest.approx(1 / (1 + np.exp(-1e-6)), abs=1e-7)
    card = read_card(tmp_path / "again")
    assert list(card["functions"]) == ["generator"], "the discriminator is skipped"
    assert (card["serves"], card["train_patients"]) == ("generator", ["ada"])
    kept = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert kept == ["card.json", "generator"]
    with pytest.raises(ExportError, match="no function inverter"):
        packing.pack(exported, tmp_path / "a.zip", ["inverter"])


def test_a_packed_card_names_no_place(tmp_path):
    data = {"name": "cdd_cesm", "root": "/archives/ada", "size": 64}
    model = {"weights": "/archives/vgg19.npz", "filters": [8], "judge": "runs/judge"}
    config = {"data": data, "model": model}
    export(make_model(), tmp_path / "export", {"name": "tiny", "config": config})
    packing.pack(tmp_path / "export", tmp_path / "tiny.zip")
    kept = packing.read_packed_card(tmp_path / "tiny.zip")["config"]
    assert kept["data"] == data | {"root": None}
    assert kept["model"] == model | {"weights": "vgg19.npz"}


def test_kernel_beyond_half_precision_keeps_float32():
    kernel = np.full((2, 2), 1e5, np.float32)
    assert packing._shrink(kernel).dtype == np.float32
    assert packing._shrink(kernel / 10).dtype == np.float16


def name_a_path(path):
    card = packing.read_packed_card(path)
    card["functions"] = {"../out": card["functions"]["generator"]}
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("card.json", json.dumps(card))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no zip file"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: zipfile.ZipFile(path, "w").close(),
        name_a_path,
    ],
)
def test_damaged_file_is_refused_and_leaves_nothing(exported, tmp_path, damage):
    file = tmp_path / "tiny.zip"
    packing.pack(exported, file)
    damage(file)
    with pytest.raises(ExportError, match=r"tiny\.zip"):
        packing.unpack(file, tmp_path / "again")
    assert not (tmp_path / "again").exists() and not (tmp_path / "out").exists()


def test_every_command_resolves_a_network_of_the_zoo_which_is_unpacked_once(shelf, monkeypatch):
    folder = zoo.fetch("models:/zoo/tiny")
    assert (folder / "card.json").is_file()
    monkeypatch.setattr(packing, "unpack", None)
    assert zoo.fetch("tiny") == folder == resolve("models:/zoo/tiny")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(ConfigError, match="tny.*tiny"):
        resolve("models:/zoo/tny")


def test_patients_are_known_under_a_key_of_ones_own(monkeypatch, caplog):
    folder = zoo.fetch("can")
    without = get_training_patients(read_card(folder), "can")
    monkeypatch.setenv("TFMAMMO_ID_KEY", "a secret")
    patients = load_identified(folder, ["image"], ["mask"]).patients
    for archive, name in (("cbis_ddsm", "P_00133"), ("folder", "p_00133")):
        assert hash_id(archive, name) in patients - without
    assert hash_id("cbis_ddsm", "P_00118") not in patients  # of the official test set
    monkeypatch.setenv("TFMAMMO_ID_KEY", "another secret")
    assert hash_id("cbis_ddsm", "P_00133") not in patients
    with caplog.at_level("INFO"):
        get_training_patients(read_card(zoo.fetch("shape")), "shape")  # of phantoms
    assert "unknown here" not in caplog.text


def test_patients_who_are_not_public_are_unknown_under_another_key(shelf, monkeypatch, caplog):
    card = read_card(zoo.fetch("tiny")) | {"train_patients": [hash_id("folder", "anna")]}
    monkeypatch.setenv("TFMAMMO_ID_KEY", "a secret")
    with caplog.at_level("INFO"):
        assert hash_id("folder", "anna") not in get_training_patients(card, "tiny")
    assert "tiny: 1 of its 1 patients are unknown here" in caplog.text
    with pytest.raises(ExportError, match="another TFMAMMO_ID_KEY"):
        get_training_patients(card | {"id_key": "of a key"}, "tiny")


def test_patients_are_known_by_the_names_that_their_archives_own_reader_gives_them():
    """The networks read CBIS-DDSM as a folder, whose table said P_00133 for each of its images."""
    card = read_card(zoo.fetch("can"))
    patients = get_training_patients(card, "can")
    assert hash_id("cbis_ddsm", "P_00133") in patients
    assert hash_id("cbis_ddsm", "P_00118") not in patients  # of the official test set
    assert len(patients) == 2 * len(card["train_patients"])
    listed = frozenset(card["train_patients"])
    assert get_training_patients(card | {PACKED: None}, "a run") == listed
    both = get_training_patients(read_card(zoo.fetch("light_head")), "light_head")
    assert hash_id("cdd_cesm", "P7") in both


def put_a_file_in_its_place(shelf):
    folder = zoo.fetch("tiny")
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda shelf: (shelf / "tiny.zip").write_bytes(b"other"), "SHA-256"),
        (lambda shelf: (shelf / "tiny.zip").unlink(), "install"),
        (lambda shelf: (shelf.parent / "cache").write_text(""), filesystem.CACHE),
        (put_a_file_in_its_place, "Not a directory"),
    ],
)
def test_what_can_not_be_fetched_is_named(shelf, damage, named):
    damage(shelf)
    with pytest.raises(ExportError, match=named):
        zoo.fetch("tiny")


def test_command_lists_shows_and_unpacks(shelf, tmp_path, capsys):
    command.main(["list"])
    assert capsys.readouterr().out.startswith("tiny ")
    command.main(["show", "models:/zoo/tiny"])
    shown = capsys.readouterr().out
    for said in (
        "- Known failure: everything",
        "- `generator`: mask [n, 8, 8, 1] -> image [n, 8, 8, 1]",
        "5 steps, 1 patients, 10 parameters",
        "- Held out, with these weights: dice 0.817.",
    ):
        assert said in shown
    command.main(["get", "tiny", str(tmp_path / "out")])
    assert (tmp_path / "out" / "generator" / "saved_model.pb").is_file()
    assert "already exists" in refuse(capsys, command.main, ["get", "tiny", str(tmp_path / "out")])


def test_add_packs_an_export_and_writes_down_its_file(shelf, exported, tmp_path, capsys):
    entry = json.loads((shelf / "tiny.json").read_text())
    (shelf / "tiny.json").write_text(json.dumps(entry | {"sha256": "", "size": 0}))
    packed = shelf / "tiny.zip"
    packed.write_bytes(b"what was packed before")
    refuse(capsys, command.main, ["add", "tiny", "--run", str(tmp_path / "nowhere")])
    assert packed.read_bytes() == b"what was packed before"
    command.main(["add", "tiny", "--run", str(exported)])
    assert json.loads((shelf / "tiny.json").read_text())["sha256"] == entry["sha256"]
    assert zoo.fetch("tiny").is_dir() and "Held out" in capsys.readouterr().out


def test_shipped_networks_are_small_and_whole():
    sizes = []
    for name in zoo.list_names():
        entry = zoo.read_entry(name)
        file = fetching.find_file(name, entry)
        sizes.append(file.stat().st_size)
        assert file.stat().st_size == entry.size
        card = packing.read_packed_card(file)
        assert card["train_patients"]
        assert entry.results or card["metrics"], f"{name}: was not evaluated"
        assert entry.failures
        text = file.with_suffix(".json").read_text(encoding="utf-8") + json.dumps(card)
        assert not re.search(r'"(/|~|\.\.)', text), "a place of the machine that trained it"
    assert max(sizes) <= 8 * 10**6 * 2
    assert sum(sizes) <= 40 * 10**6


def test_the_shipped_mask_gan_knows_what_a_plausible_mask_is():
    assert load_mask_generator(resolve("models:/zoo/mask_gan")).limits is not None


def test_a_misspelt_network_gets_a_suggestion():
    with pytest.raises(TrackingError, match="did you mean light_head"):
        resolve("light_haed")


def test_page_of_the_zoo_is_up_to_date():
    shown = Path(__file__).parents[2] / "docs" / "models" / "zoo.md"
    assert shown.read_text(encoding="utf-8") == page.render()

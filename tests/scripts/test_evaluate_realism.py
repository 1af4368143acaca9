"""evaluate/realism.py on a small archive in native form and on real exports of models
whose images are known.
"""

import csv
import json
import sys
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.small_mammograms import write_discs
from tfmammo.config import DataConfig
from tfmammo.data import datasets, splits
from tfmammo.errors import ConfigError, ExportError, WeightsError
from tfmammo.evaluation import comparison
from tfmammo.evaluation.perceptual import PerceptualScorer
from tfmammo.metrics import perceptual
from tfmammo.nn import pretrained
from tfmammo.nn.layers import patch_seeds, tri_label, uniform_noise
from tfmammo.tracking import export
from tfmammo.training.image_grid import HEADER

SIZE = 32
FOLDS = 2
PATIENTS = 8
MODELS = ("G_unet", "G_unet-", "copier")
OF_PIXELS = (
    "l1_mass",
    "ssim_mass",
    "ms_ssim",
    "nearest_pixels",
    "nearest_mass",
    "haar_mass",
    "lattice_2",
    "lattice_4",
    "lattice_8",
)


class Known(keras.Model):
    """With a tri-label: its tissue, and `level` in the mass and half of it in the margin, if it
    sees one.

    With a mask alone: always the patch it was given.
    """

    def __init__(self, level=0.6, channels=3, patch=None):
        super().__init__(name="known")
        network = keras.Sequential([keras.Input((SIZE, SIZE, 1)), keras.layers.Conv2D(1, 1)])
        self.networks = {"generator": network}
        self.level = level
        self.channels = channels
        self.patch = patch

    def functions(self):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, SIZE, SIZE, self.channels], tf.float32, "tri_label")
            ]
        )
        def infill(tri_label):
            tissue, mask, *margin = tf.unstack(tri_label, axis=-1)
            image = tissue * (1 - mask) + self.level * mask
            return {"image": (image * (1 - 0.5 * margin[0]) if margin else image)[..., tf.newaxis]}

        @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 1], tf.float32, "mask")])
        def copy(mask):
            return {"image": tf.zeros_like(mask) + self.patch}

        return {"generator": infill if self.patch is None else copy}


def disc_in_tissue(disc, random):
    """Grey values of a bright disc in coarse noise, float64."""
    tissue = cv2.resize(random.random((12, 12)), disc.shape, interpolation=cv2.INTER_CUBIC)
    return 90 * disc + 120 * np.clip(tissue, 0, 1) + 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CDD-CESM's form: eight patients with two views each, a bright blot on tissue of its own in
    each.
    """
    root = tmp_path_factory.mktemp("archive")
    write_discs(root, PATIENTS, disc_in_tissue)
    return DataConfig(name="cdd_cesm", root=root, size=SIZE, folds=FOLDS)


@pytest.fixture(scope="module")
def patches(data):
    return datasets.load_all_patches(data)


@pytest.fixture(scope="module")
def models(tmp_path_factory, data, patches):
    """Name -> the folders of its folds, with the cards that a training writes."""
    root = tmp_path_factory.mktemp("runs")
    folders = {}
    for name in (*MODELS, "leaky"):
        folders[name] = []
        for fold in range(1 if name == "leaky" else FOLDS):
            own = data.model_copy(update={"fold": fold})
            if name == "leaky":
                own = data.model_copy(
                    update={"split": "paper", "paper_samples": 40, "paper_test": 8}
                )
            train, held_out = splits.split(patches, own)
            model = {
                "G_unet": lambda: Known(),
                "G_unet-": lambda: Known(channels=2),
                "copier": lambda train=train: Known(patch=train.images[3]),
                "leaky": lambda: Known(),
            }[name]()
            card = {
                "split": own.split,
                "train_patients": sorted(set(train.patient_ids.tolist())),
                "held_out_ids": held_out.ids.tolist(),
                "config": {
                    "data": own.model_dump(mode="json"),
                    "model": {"margin": None if name == "G_unet-" else 316},
                },
            }
            folders[name].append(str(export.export(model, root / name / f"fold{fold}", card)))
    return folders


@pytest.fixture(scope="module")
def run(load_script, data, tmp_path_factory):
    """A function that runs the script in this process: models and overrides -> its
    output folder.
    """

    def call(models, *overrides):
        folder = tmp_path_factory.mktemp("realism")
        config = {
            "data": {"name": data.name, "root": str(data.root), "size": SIZE},
            "models": models,
            "samples": 200,
        }
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        extra = ["--set", "alexnet=none", "inception=none", "pairs=20", *overrides]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sys,
                "argv",
                [
                    "realism.py",
                    "--config",
                    str(folder / "config.yaml"),
                    "--output",
                    str(folder / "output"),
                    *extra,
                ],
            )
            load_script("evaluate/realism").main()
        return folder / "output"

    return call


@pytest.fixture(scope="module")
def output(run, models):
    return run({name: models[name] for name in MODELS})


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_name(output):
    return {(row["model"], row["measure"]): row for row in table(output / "table.csv")}


def synthetic(patches, margin):
    label = tri_label(
        patches.images,
        patches.masks.astype(np.float32),
        uniform_noise(patch_seeds(patches.images, 0), SIZE),
        margin,
    ).numpy()
    image = label[..., :1] * (1 - label[..., 1:2]) + 0.6 * label[..., 1:2]
    return image * (1 - 0.5 * label[..., 2:]) if margin else image


@pytest.mark.long
def test_each_model_gets_what_it_takes_and_is_measured(output, patches):
    rows = by_name(output)
    images = table(output / "per_image.csv")
    assert [row["id"] for row in images if row["model"] == "G_unet"] == patches.ids.tolist()
    scorer = perceptual.LPIPS("none", "none")
    for name, margin in (("G_unet", 316), ("G_unet-", None)):
        generated = synthetic(patches, margin)
        distance = scorer.distance(patches.images, generated)
        assert [
            float(row["lpips_random"]) for row in images if row["model"] == name
        ] == pytest.approx(distance, abs=1e-5)
        assert float(rows[name, "lpips_random"]["mean"]) == pytest.approx(distance.mean(), abs=1e-5)
        inside = patches.masks > 0
        error = np.mean(
            [
                np.abs(patches.images[i] - generated[i])[inside[i]].mean()
                for i in range(len(generated))
            ]
        )
        assert float(rows[name, "l1_mass"]["mean"]) == pytest.approx(error, abs=1e-5)
        assert -1 < float(rows[name, "ssim_mass"]["mean"]) < 0.9
        table_ = scorer.matrix(patches.images, generated)
        others = table_[~np.eye(len(table_), dtype=bool)].mean()
        assert float(rows[name, "lpips_pairs_random"]["mean"]) == pytest.approx(others, abs=1e-4)
        assert distance.mean() < others, "a patch is nearer to its own real one"
    assert float(rows["G_unet", "lpips_random"]["mean"]) > float(
        rows["G_unet-", "lpips_random"]["mean"]
    )
    filled = np.where(inside, patches.images[inside].mean(), patches.images)
    distance = scorer.distance(patches.images, filled.astype(np.float32))
    found = [row for row in images if row["model"] == "one grey value"]
    assert [float(row["lpips_random"]) for row in found] == pytest.approx(distance, abs=1e-5)
    assert {row["nearest_mass"] for row in found} == {""}  # it was trained on nothing
    assert ("one grey value", "fid_random") in rows and ("one grey value", "haar_mass") in rows


@pytest.mark.long
def test_inside_the_mask_alone_the_real_tissue_stands_around_every_model(run, models, patches):
    """The copier's patches of another tissue count in the mass alone."""
    output = run({name: models[name] for name in ("G_unet", "copier")}, "inside=true")
    images = table(output / "per_image.csv")
    scorer = perceptual.LPIPS("none", "none")
    expected = np.where(patches.masks > 0, synthetic(patches, 316), patches.images)
    found = [float(row["lpips_random"]) for row in images if row["model"] == "G_unet"]
    assert found == pytest.approx(scorer.distance(patches.images, expected), abs=1e-5)
    rows = by_name(output)
    whole = by_name(run({"copier": models["copier"]}))["copier", "lpips_random"]
    assert float(rows["copier", "lpips_random"]["mean"]) < float(whole["mean"])


@pytest.mark.long
def test_sets_have_intervals_and_differences(output, patches):
    rows = by_name(output)
    for name in MODELS:
        for measure in ("lpips_pairs_random", "fid_random", "kid_random", "ms_ssim"):
            row = rows[name, measure]
            assert (row["n"], row["patients"]) == (str(len(patches)), str(PATIENTS))
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
            if name == "G_unet":
                assert row["difference"] == "" == row["p"]
            else:
                expected = float(row["mean"]) - float(rows["G_unet", measure]["mean"])
                assert (
                    float(row["difference"]) == pytest.approx(expected)
                    and 0 <= float(row["p"]) <= 1
                )
    assert float(rows["copier", "ms_ssim"]["mean"]) > float(rows["real patches", "ms_ssim"]["mean"])
    inception = perceptual.Inception("none")
    real = inception.features(patches.images)
    generated = inception.features(synthetic(patches, None))
    assert float(rows["G_unet-", "fid_random"]["mean"]) == pytest.approx(
        perceptual.fid(real, generated), rel=1e-3
    )
    assert float(rows["G_unet-", "kid_random"]["mean"]) == pytest.approx(
        1000 * perceptual.mmd(real, generated, paired=True), rel=1e-2
    )


@pytest.mark.long
def test_planted_copies_are_flagged_and_real_patches_are_not(output, patches):
    rows = by_name(output)
    assert float(rows["copier", "copy_random"]["mean"]) == 100
    assert float(rows["copier", "nearest_pixels"]["mean"]) == pytest.approx(0, abs=1e-6)
    assert float(rows["real patches", "copy_random"]["mean"]) < 20
    assert 0.8 < float(rows["real patches", "nearest_pixels"]["mean"]) < 1.2
    copies = [
        row["copy_random"]
        for row in table(output / "per_image.csv")
        if row["model"] == "real patches"
    ]
    assert len(copies) == len(patches)


@pytest.mark.long
def test_random_networks_are_named_wherever_a_number_stands(output):
    for row in table(output / "table.csv"):
        assert row["measure"].endswith("_random") != (row["measure"] in OF_PIXELS)
    markdown = (output / "table.md").read_text(encoding="utf-8")
    assert markdown.splitlines()[0].endswith(
        "; made with random AlexNet, no calibrated heads, random Inception"
    )
    for line in (
        "LPIPS to its real patch (random)",
        "FID (random)",
        "KID x 1000 (random)",
        "nearest training patch in features (random)",
    ):
        assert f"\n| {line} | " in markdown
    assert "| copies, below 0.5 (random), % | " in markdown
    assert "KID x 1000 over 100 subsets of 16 patches (random Inception)" in markdown
    assert "as printed" not in markdown
    assert "\nLPIPS: random AlexNet with heads of 1.\n" in markdown
    assert "\nFID, KID and nearest features: random Inception-v3.\n" in markdown
    networks = json.loads((output / "networks.json").read_text(encoding="utf-8"))
    assert networks["LPIPS"]["AlexNet"] == {"title": "random AlexNet", "sha256": ""}
    assert networks["FID, KID"]["Inception-v3"]["title"] == "random Inception-v3"


@pytest.mark.long
def test_sheets(output, patches, models):
    kinds = ("nearest", "sheet-best", "sheet-worst")
    names = {f"{kind}-{model}.png" for kind in kinds for model in ("G_unet", "G_unet-", "copier")}
    names.add("sheet.png")
    assert {path.name for path in output.glob("*.png")} == names
    sheet = cv2.imread(str(output / "sheet.png"))
    assert sheet.shape == (HEADER + 6 * (SIZE + 3), 3 + 5 * (SIZE + 3), 3)
    near = cv2.imread(str(output / "nearest-copier.png"))
    assert near.shape == (HEADER + 6 * (SIZE + 3), 3 + 4 * (SIZE + 3), 3)
    np.testing.assert_array_equal(
        near[HEADER : HEADER + SIZE, 3 : 3 + SIZE],
        near[HEADER : HEADER + SIZE, 6 + SIZE : 6 + 2 * SIZE],
    )


@pytest.mark.long
def test_files_of_networks_a_sample_and_the_leaky_protocol(run, models, tmp_path):
    """With files for AlexNet and heads no number is marked, and the paper's stands below."""
    network = pretrained.alexnet("none").get_layer(index=3)  # the colour network inside
    np.savez(
        tmp_path / "alexnet.npz",
        **{f"{layer.name}/{v.name}": v.numpy() for layer in network.layers for v in layer.weights},
    )
    np.savez(
        tmp_path / "heads.npz",
        **{
            f"lin{i}/kernel": np.ones(n, np.float32) for i, n in enumerate((64, 192, 384, 256, 256))
        },
    )
    files = [f"alexnet={tmp_path / 'alexnet.npz'}", f"heads={tmp_path / 'heads.npz'}"]
    output = run(
        {"G_unet": models["G_unet"], "leaky": models["leaky"]},
        *files,
        "sample=6",
        "rows=2",
        "subset_size=4",
        "patients=unseen",
    )
    markdown = (output / "table.md").read_text(encoding="utf-8")
    heading = markdown.splitlines()[2]
    line = next(
        line for line in markdown.splitlines() if line.startswith("| LPIPS to its real patch")
    )
    assert (
        heading
        == "|  | G_unet | G_unet, as printed (on ddsm, a split of its own) | "
        "one grey value | real patches |"
        and line.split(" | ")[2] == "0.0202"
    )
    assert "made with random Inception" in markdown
    assert "LEAKY" in markdown and (output / "sheet-leaky.png").is_file()
    rows = {
        (row["protocol"], row["model"], row["measure"]): row for row in table(output / "table.csv")
    }
    assert rows["unseen", "G_unet", "lpips"]["n"] == "6" == rows["paper", "leaky", "lpips"]["n"]
    assert rows["unseen", "real patches", "ms_ssim"]["n"] == "6"
    assert ("unseen", "real patches", "fid_random") in rows, (
        "there are six patches of other patients"
    )


def test_rows_of_whole_sets_are_compared_as_asked():
    """Statistics that are means of patches: their jackknife is Student's t of the
    patients' values.
    """
    values = {
        name: np.random.default_rng(row).normal(row, 1, 8)
        for row, name in enumerate(("A", "B", "C", "real"))
    }
    statistics = {
        "kid": {name: lambda rows, own=own: float(own[rows].mean()) for name, own in values.items()}
    }
    scorer = PerceptualScorer(SimpleNamespace(note=""), SimpleNamespace(note=""))
    patients = np.array(list("abcdefgh"))
    rows = scorer.make_rows(statistics, patients, 0.95, "real", "pairs")
    assert [(row.model, row.against) for row in rows] == [
        ("A", ""),
        ("B", "A"),
        ("C", "A"),
        ("C", "B"),
        ("real", ""),
    ]
    assert {row.method for row in rows} == {"jackknife"}
    expected = scipy.stats.ttest_1samp(values["C"] - values["B"], 0)
    assert (rows[3].difference, rows[3].p) == pytest.approx(
        (np.mean(values["C"] - values["B"]), expected.pvalue)
    )
    assert [row.against for row in scorer.make_rows(statistics, patients, 0.95, "real")] == [
        "",
        "A",
        "A",
        "",
    ]


def test_wrong_configs(run, models):
    for override, message in (
        ("data.size=16", "data.size: "),
        ("models={real patches: x}", "real patches is the name of a row of its own"),
        ("sample=1", "sample: "),
        ("alexnett=x", "alexnett: unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            run({"G_unet": models["G_unet"]}, override)
    with pytest.raises(WeightsError, match="nowhere.npz"):
        run({"G_unet": models["G_unet"]}, "heads=nowhere.npz")


@pytest.mark.slow
def test_a_model_that_takes_something_else(models, tmp_path):
    inputs = {"tri_label": None, "mask": None}
    assert comparison.open_first(models["copier"][0], inputs, "image", None).source == "mask"
    assert comparison.open_first(models["G_unet"][0], inputs, "image", None).source == "tri_label"
    with pytest.raises(ExportError, match="tri_label"):
        comparison.open_first(models["G_unet"][0], inputs, "shapes", None)

"""Mammograms before and after a synthesis, from a small set by Poisson editing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.facts import find
from tfmammo.archives import phantom
from tfmammo.config import DataConfig
from tfmammo.evaluation import mammograms
from tfmammo.evaluation.mammograms import MammogramsConfig
from tfmammo.evaluation.report import Report
from tfmammo.mammogram import Lesion
from tfmammo.metrics.resampling import bootstrap_interval
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.mammograms import synthesize
from tfmammo.synthesis.recipe import ArchiveIndexes

DATA = DataConfig(phantoms=12)


def make_config(folder, **values):
    return MammogramsConfig(data=DATA, sets={"poisson": folder}, columns=2, samples=50, **values)


def test_each_mass_of_a_mammogram_is_measured(tmp_path):
    values = {"name": "two", "data": DATA, "renderer": "paste", "format": "png"}
    folder = tmp_path / "set"
    synthesize(SynthesisConfig(**values, count=2, masses=(2, 2)), folder)
    config = make_config(folder)
    for item in mammograms.read_items(folder, config, ArchiveIndexes()):
        lines = mammograms.measure_item(item, config.ring)
        name, lesions = item.recipe.name, item.recipe.lesions
        assert [line["name"] for line in lines] == [f"{name}#0", f"{name}#1"]
        patients = [lesion.graft.patient_id for lesion in lesions]
        assert [line["patient_of_lesion"] for line in lines] == patients
        for line, mask in zip(lines, item.masks, strict=True):
            alone = mammograms.measure_mass(item.after.pixels(), mask, config.ring)
            assert (line["contrast"], line["seam"]) == alone


def test_a_mass_is_measured_around_its_mask():
    pixels = np.full((60, 80, 1), 0.2, np.float32)
    pixels[::2] += 0.05
    mask = np.zeros((60, 80, 1), np.uint8)
    mask[20:30, 40:50] = 1
    pixels[mask == 1] += 0.3
    contrast, seam = mammograms.measure_mass(pixels, mask, ring=6)
    assert contrast == pytest.approx(0.3, abs=0.01) and seam > 5
    assert np.isnan(mammograms.measure_mass(pixels, np.zeros_like(mask), 6)).all()


def test_masses_known_by_their_box_alone_are_left_out():
    (mammogram,) = [one for one in phantom.read(count=8) if one.lesions][:1]
    box_only = replace(mammogram, lesions=(Lesion("mass", mammogram.lesions[0].box),))
    indexes = SimpleNamespace(read=lambda _: [box_only, mammogram])
    lines = mammograms.measure_real_masses(make_config("x", real=9), indexes)
    masses = [lesion for lesion in mammogram.lesions if lesion.kind == "mass"]
    assert len(lines) == len(masses) and lines[0]["patient_of_lesion"] == mammogram.patient_id


def test_means_have_intervals_over_patients():
    values = np.random.default_rng(0).random(14)
    patients = [f"p{number // 2}" for number in range(14)]
    known = {"set": "A", "contrast_before": np.nan, "seam": 1.0, "seam_before": 2.0}
    lines = [
        known
        | {"patient": patient, "patient_of_lesion": patient, "contrast": value}
        | {"trained_on": patient in ("p1", "p4")}
        for value, patient in zip(values, patients, strict=True)
    ]
    report = Report(config=None)
    mammograms.add_masses(report, lines, make_config("x"))
    bounds = bootstrap_interval(values, patients, samples=50)
    contrast = find(report.facts, "A", "contrast", "masses")
    found = (contrast.value, contrast.low, contrast.high)
    assert found == pytest.approx((values.mean(), *bounds))
    assert (contrast.patients, contrast.images) == (7, 14)
    assert find(report.facts, "A", "of_training_patients", "masses").value == 4
    assert not [fact for fact in report.facts if fact.measure == "contrast_before"]
    (line,) = report.tables[0].body
    assert line[:3] == ["A", "14", "4"]
    assert line[4:] == ["-", "1.00\n[1.00, 1.00]", "2.00\n[2.00, 2.00]"]

"""Which test patches change sides, on scores set by hand."""

import numpy as np
import pytest

from tests.facts import find
from tfmammo.config import DataConfig
from tfmammo.data.patches import Patches
from tfmammo.evaluation.report import Report
from tfmammo.metrics.segmentation import paired_test
from tfmammo.studies import classification_cases as cases
from tfmammo.studies.classification import StudyConfig
from tfmammo.studies.classification_effects import EditedPatches, Effect

LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
BEFORE = np.array([0.2, 0.4, 0.6, 0.9, 0.7, 0.1, 0.8, 0.3])
AFTER = np.array([0.6, 0.3, 0.4, 0.9, 0.2, 0.6, 0.9, 0.3])


def make_patches(labels, patients=None):
    count = len(labels)
    names = np.array([f"i{number}" for number in range(count)])
    random = np.random.default_rng(0)
    return Patches(
        random.random((count, 16, 16, 1)).astype(np.float32),
        np.zeros((count, 16, 16, 1), np.uint8),
        np.array(patients or [f"p{number}" for number in range(count)]),
        names,
    ).with_labels(labels)


def make_config(**values):
    experiment = {
        "name": "classifier",
        "data": DataConfig(size=16),
        "training": {"steps": 1},
        "model": {},
    }
    known = {"shares": (0, 0.5), "seeds": (0, 1), "samples": 200, "cases": 2}
    return StudyConfig(**{"experiment": experiment, **known, **values})


def test_cases_that_change_sides_are_counted_both_ways():
    moves = cases.count_moves(BEFORE, AFTER, LABELS)
    assert list(moves.values()) == [2, 1, 1, 1, 1, pytest.approx((0.4 - 0.1) / 2)]
    assert list(cases.count_moves(BEFORE, BEFORE, LABELS).values()) == [2, 0, 0, 0, 0, 0]
    none_missed = cases.count_moves(np.ones(8), AFTER, LABELS)
    assert none_missed["missed_lesions"] == 0 and np.isnan(none_missed["score_of_missed"])
    together = cases.average_moves([moves, none_missed])
    assert together["missed_lesions"] == 1 and together["score_of_missed"] == pytest.approx(0.15)
    control = cases.count_control_moves(np.stack([BEFORE, AFTER]), LABELS)
    # Both ways around: what one finds and the other misses counts on either side once.
    assert control["of_them_found"] == control["found_lesions_missed"] == 1
    assert control["score_of_missed"] == pytest.approx(((0.4 - 0.1) / 2 + (0.1 + 0.2) / 2) / 2)
    assert cases.count_control_moves(BEFORE[np.newaxis], LABELS) is None


def test_each_share_and_the_control_are_counted():
    test = make_patches([1] * 8 + [0] * 4)
    reference = np.random.default_rng(1).random((2, 12))
    raised = np.minimum(reference + 0.2, 1)
    report = Report(config=None)
    cases.add_moves(report, {0: reference, 0.5: raised}, test, make_config())
    moves = cases.average_moves(
        [cases.count_moves(a, b, test.labels) for a, b in zip(reference, raised, strict=True)]
    )
    for key, value in moves.items():
        assert find(report.facts, "share50", key, "moves", "share0").value == value
    change = paired_test(
        raised.mean(axis=0)[:8], reference.mean(axis=0)[:8], test.patient_ids[:8], 200
    )
    fact = find(report.facts, "share50", "score_of_lesions", "moves", "share0")
    assert (fact.value, fact.low, fact.p) == (change.value, change.low, change.p)
    assert (fact.patients, fact.images) == (8, 8)
    (table,) = report.tables
    share, control = table.body
    assert share[0] == "50 %" and control[0] == "0 %, another seed" and control[6:] == ["-", "-"]
    assert share[1] == f"{moves['missed_lesions']:.1f}, {moves['of_them_found']:.1f}"
    assert share[6].startswith(f"{change.value:+.3f}\n[")
    assert float(share[7]) == pytest.approx(change.p, abs=0.001)


def test_few_patients_and_one_seed_have_neither_p_nor_control():
    test = make_patches([1, 1, 0, 0])
    scores = {0: np.full((1, 4), 0.4), 0.5: np.full((1, 4), 0.6)}
    report = Report(config=None)
    cases.add_moves(report, scores, test, make_config(seeds=(0,)))
    (table,) = report.tables
    assert table.body == [["50 %", "2.0, 2.0", "0.0", "0.0", "2.0", "+0.200", "+0.200", "-"]]
    assert len(table.notes) == 1 and "2 patients" in table.notes[0]
    assert cases.find_shown_share((0, 0.1, 0.5, 1)) == 0.5, "nearest to the paper's best"
    assert cases.find_shown_share((0, 0.1, 0.25)) == 0.25


def test_missed_lesions_are_drawn_at_random_beside_the_largest_changes():
    chosen = cases.choose_cases(BEFORE, AFTER, LABELS, 1, seed=0)
    assert {name: rows.tolist() for name, rows in chosen.items()} == {
        "random": np.random.default_rng(0).permutation([0, 1])[:1].tolist(),
        "largest rise": [0],
        "largest fall": [2],
    }
    everything_found = cases.choose_cases(np.ones(8), AFTER, LABELS, 1, seed=0)
    assert everything_found["random"].size == 0 and everything_found["largest fall"].size == 1


def test_neighbours_are_of_other_patients(monkeypatch):
    features = np.array([[0.0], [0.1], [0.2], [5.0]])
    test = make_patches([1, 1, 0, 0], ["a", "a", "b", "c"])
    # Of the other patients' patches there are two or three.
    near = cases.count_lesion_neighbours(features, test)
    assert near.tolist() == pytest.approx([0, 0, 2 / 3, 2 / 3])
    monkeypatch.setattr(cases, "NEIGHBOURS", 1)
    assert cases.count_lesion_neighbours(features, test).tolist() == [0, 0, 1, 0]


def test_figures_show_the_cases(monkeypatch):
    test = make_patches([1] * 6 + [0] * 6)
    random = np.random.default_rng(2)
    scores = {0: random.random((2, 12)), 0.5: random.random((2, 12))}
    folders = {(0, 0): "real", (0.5, 0): "mixed"}
    seen = []

    def predict(folder, images, output, patients):
        seen.append((folder, output))
        return images.reshape(len(images), -1)[:, :4]

    monkeypatch.setattr(cases, "predict_unseen", predict)
    compared = cases.compare_trainings(folders, scores, test, make_config(tsne=5))
    assert seen == [("real", "features"), ("mixed", "features")] and compared.share == 0.5
    assert len(compared.test) == 10 and compared.points[0].shape == (10, 2)
    rows = compared.make_rows()
    assert {row["choice"] for row in rows} == {"random", "largest rise", "largest fall"}
    kept = {name: place for place, name in enumerate(test.ids.tolist())}
    for row in rows:
        assert row["before"] == scores[0][0][kept[row["id"]]]
        assert row["after"] == scores[0.5][0][kept[row["id"]]]
    figure = cases.draw_moves(compared)
    marked = figure.axes[1].collections[2].get_offsets()
    np.testing.assert_array_equal(marked, compared.points[1][compared.chosen["random"]])
    pictures = [axes for axes in cases.draw_cases(compared).axes if axes.images]
    assert len(pictures) == len(rows)
    alone = make_config(shares=(0,), controls=(), tsne=5)
    assert cases.compare_trainings(folders, scores, test, alone) is None


@pytest.mark.parametrize(("target", "best", "worst"), [("mass", 2, 1), ("removal", 1, 2)])
def test_pairs_are_a_random_choice_the_best_and_the_worst(target, best, worst):
    patches = make_patches([0] * 4)
    change = np.array([0.1, -0.3, 0.4, 0.2])
    before = np.full(4, 0.5)
    effect = Effect(target, before, before + change, before, patches.patient_ids, patches.ids, 0.0)
    pairs = cases.choose_pairs(effect, 2)
    assert [rows.tolist() for rows in pairs.values()] == [[0, 1], [best], [worst]]
    edited = EditedPatches(target, patches, 1 - patches.images, 0.0)
    figure = cases.draw_pairs([edited], [effect], 2)
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == 8
    np.testing.assert_array_equal(images[4], patches.images[best, ..., 0])
    np.testing.assert_array_equal(images[5], 1 - patches.images[best, ..., 0])
    assert figure.axes[5].get_title() == f"{0.5 + change[best]:.2f}"

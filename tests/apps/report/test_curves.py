"""Validation curves in the report: whether they are flat, and how facts get them."""

import math

import numpy as np
import pytest

from tfmammo import document
from tfmammo.apps.report import curves, page
from tfmammo.apps.report.curves import Curve
from tfmammo.apps.report.facts import Facts
from tfmammo.config import Experiment, TrackingConfig
from tfmammo.errors import ConfigError, TrackingError
from tfmammo.studies.workflow import Step
from tfmammo.tracking import runs
from tfmammo.tracking.export.card import CARD
from tfmammo.tracking.runs import Run


def make_curve(*values, training="can/seed0", measure="dice"):
    steps = tuple(range(100, 100 * len(values) + 1, 100))
    return Curve(training=training, measure=measure, steps=steps, values=values)


def test_the_end_is_compared_with_the_quarter_before():
    curve = make_curve(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9)
    assert curve.end == pytest.approx(0.8)
    assert curve.change == pytest.approx(0.8 - 0.55)
    assert curve.course == "rising"
    assert make_curve(*reversed(curve.values)).course == "falling"


def test_a_change_within_the_noise_is_none():
    noisy = make_curve(*[0.5] * 8, 0.60, 0.70, 0.65, 0.65, 0.62, 0.76, 0.64, 0.70)
    difference = noisy.change
    variances = [np.var(noisy.values[start : start + 4], ddof=1) / 4 for start in (8, 12)]
    assert 0.01 * noisy.end < difference < 2 * math.sqrt(sum(variances))
    assert noisy.course == "flat"
    steady = [value + (0.1 if place >= 12 else 0) for place, value in enumerate(noisy.values)]
    assert make_curve(*steady).course == "rising"


def test_less_than_a_hundredth_is_no_change():
    assert make_curve(*[0.8] * 6, 0.807, 0.807).course == "flat"
    assert make_curve(*[0.8] * 6, 0.809, 0.809).course == "rising"
    assert make_curve(*[0.0] * 8).course == "flat"  # of a detector that finds nothing


@pytest.mark.parametrize(("validations", "share"), [(8, 0.09), (40, 0.03)])
def test_noise_alone_rises_as_often_as_the_page_says(validations, share):
    random = np.random.default_rng(0)
    # noise of a tenth: so the rule's hundredth of the mean decides nothing
    ends = [make_curve(*random.normal(1, 0.1, validations)).course for _ in range(2000)]
    assert ends.count("rising") / 2000 == pytest.approx(share, abs=0.012)
    assert ends.count("falling") / 2000 == pytest.approx(share, abs=0.012)
    assert f"{100 * share:.0f} in a hundred" in page.CHANCE


def test_a_short_curve_is_not_judged():
    header, (line,) = curves.tabulate([make_curve(0.5)])
    assert line == ("can/seed0", "dice", "0.5", "-", "too short to say")
    assert len(header) == len(line)


def test_curves_come_from_the_store_of_the_report(tmp_path, tracking_uri):
    experiment = Experiment[dict](
        name="can", tracking=TrackingConfig(uri=tracking_uri, system_metrics=False), model={}
    )
    run = Run(experiment, tmp_path / "can")
    run.log_tags({runs.MONITOR: "dice"})
    for step, value in ((10, 0.81234567), (20, 0.9)):
        run.log_metrics({"validation_dice": value, "validation_ssim": 0.1}, step)
    run.close()
    steps = [
        Step("can", ("/somewhere/train/can.py", "--config", "configs/can.yaml")),
        Step("can_segmentation", ("/somewhere/evaluate/segmentation.py",)),
    ]
    assert curves.read_curves(steps, tmp_path, tracking_uri) == (
        Curve(training="can", measure="dice", steps=(10, 20), values=(0.8123, 0.9)),
    )


def test_a_study_has_the_curves_of_its_trainings(tmp_path, tracking_uri):
    tracking = TrackingConfig(uri=tracking_uri, system_metrics=False)
    experiment = Experiment[dict](name="a", tracking=tracking, model={})
    real, blending = ("study/detectors/real/fold0-seed0", "study/generators/blending/fold0")
    without_store = "study/detectors/real/fold0-seed1"
    for name in ("study", real, f"{real}.old", blending):  # the first is the study's own run
        run = Run(experiment, tmp_path / name)
        run.log_tags({runs.MONITOR: "froc"})
        run.log_metrics({"validation_froc": 0.5}, 10)
        run.close()
    for name in (real, f"{real}.old", blending, without_store):
        (tmp_path / name / "export").mkdir(parents=True)
        (tmp_path / name / "export" / CARD).touch()
    step = Step("study", ("/somewhere/evaluate/detection.py", "--study", "blending"))
    found = curves.read_curves([step], tmp_path, tracking_uri)
    assert {curve.training: curve.values for curve in found} == {
        real: (0.5,),
        without_store: (),
        blending: (0.5,),
    }


def test_curves_are_complete_with_one_of_each_training_and_of_each_study():
    output = "--output runs/report-small"
    train = f"python train/can.py --config a {output}/can/seed0 --set a=1"
    study = f"python evaluate/detection.py --study blending {output}/study"
    classify = f"python evaluate/classification.py {output}/classify"
    evaluate = f"python evaluate/detection.py --config a {output}/detection"
    own = make_curve(0.5)
    of_study = make_curve(0.5, training="study/detectors/real/fold0-seed0")
    assert curves.are_complete([own], [train, evaluate])
    assert curves.are_complete([own, of_study], [train, study])
    assert not curves.are_complete([own, of_study], [train, study, classify])
    assert not curves.are_complete([own], [train, train.replace("seed0", "seed1")])
    assert not curves.are_complete([own], [train, study])
    assert not curves.are_complete([], [evaluate])


def test_a_run_without_the_tag_has_no_curve(tmp_path, tracking_uri, caplog):
    experiment = Experiment[dict](
        name="can", tracking=TrackingConfig(uri=tracking_uri, system_metrics=False), model={}
    )
    Run(experiment, tmp_path / "can").close()
    with pytest.raises(TrackingError, match="its run has no tag monitor"):
        runs.read_monitor(tmp_path / "can", tracking_uri)
    step = Step("can", ("/somewhere/train/can.py",))
    (empty,) = curves.read_curves([step], tmp_path, tracking_uri)
    assert empty.training == "can" and empty.values == () and empty.course == curves.UNKNOWN
    assert "can: no validation curve" in caplog.text


def test_a_training_made_elsewhere_has_the_curve_that_came_with_its_export(tmp_path):
    exports = {f"can/seed{seed}": tmp_path / f"export{seed}" for seed in range(2)}
    for folder in exports.values():
        folder.mkdir()
    (tmp_path / "export1/curve.csv").write_text("step,dice\n500,0.25\n1000,0.512345\n")
    (curve,) = curves.read_exported_curves(exports)
    assert (curve.training, curve.measure) == ("can/seed1", "dice")
    assert curve.steps == (500, 1000) and curve.values == (0.25, 0.5123)
    for text in ("", "step,dice\n500\n", "step,dice\nmany,0.5\n"):
        (tmp_path / "export0/curve.csv").write_text(text)
        with pytest.raises(ConfigError, match=r"export0/curve.csv: is no table of steps"):
            curves.read_exported_curves(exports)


def test_a_curve_leaves_out_what_is_no_number(tmp_path):
    """The judge's measure is none while a network is still fading in."""
    (tmp_path / curves.EXPORTED).write_text("step,judged\n1000,nan\n2000,inf\n3000,0.7\n")
    (curve,) = curves.read_exported_curves({"contextual": tmp_path})
    assert (curve.steps, curve.values) == ((3000,), (0.7,))


def test_the_chart_has_a_panel_for_each_measure():
    of_item = [
        make_curve(0.1, 0.2),
        make_curve(0.2, 0.3, training="can/seed1"),
        make_curve(0.5, 0.4, training="mask_gan", measure="coverage"),
    ]
    names = {
        "study/detectors/real/fold0-seed1": "study/detectors/real",
        "cgan/fold1/seed0": "cgan",
        "blending/fold2": "blending",
    }
    for training, model in names.items():
        assert curves._get_model(make_curve(0.1, training=training)) == model
    figure = curves._draw_figure(of_item)
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    first, second = figure.axes[0].lines
    assert first.get_color() == second.get_color()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["can"]
    many = [make_curve(0.1, 0.2, training=f"model{number}/seed0") for number in range(15)]
    (axes,) = curves._draw_figure(many).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 15
    assert curves.draw(of_item).startswith(b"\x89PNG")


def test_the_page_draws_what_has_two_points_and_says_how_it_ends():
    facts = Facts(
        item="can_table1",
        scale="small",
        extent="",
        is_papers_data=False,
        trainings=2,
        commands=(),
        curves=(make_curve(0.5), make_curve(*[0.8] * 8, training="can/seed1")),
    )
    blocks = page.build_page({"can_table1": facts})
    markdown = document.render_markdown(blocks)
    assert "| can/seed1 | dice | 0.8 | +0 | flat |" in markdown and "can/seed0" not in markdown
    assert "Validation curves, by their ends: 1 flat. Where nothing" in markdown
    twice = {"can_table1": facts, "can_fig4": facts}  # items of one training
    assert "by their ends: 1 flat." in document.render_markdown(page.build_page(twice))
    pictures = page.draw_curves({"can_table1": facts})
    assert 'alt="validation curves"' in document.render_html("", blocks, pictures)
    files = page.link_curves({"can_table1": facts}, "results/curves")
    linked = document.render_markdown(blocks, files)
    assert "![validation curves](results/curves/can_table1.png)" in linked
    assert "![" not in markdown
    short = facts.model_copy(update={"curves": facts.curves[:1]})
    assert "Validation curves" not in document.render_markdown(
        page.build_page({"can_table1": short})
    )

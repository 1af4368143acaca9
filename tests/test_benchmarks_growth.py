"""The benchmarks of growth and inference: exponents of known points, and runs at a tiny size."""

import json
import os
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest

SIZES = (64, 128, 256, 512)


@pytest.fixture
def scaling(repository, monkeypatch):
    """benchmarks/scaling.py as a module."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import scaling

    return scaling


@pytest.fixture
def measured(repository, tmp_path):
    """A function (script, *arguments) -> (the JSON lines of a benchmark, its stderr)."""

    def run(script, *arguments):
        path = os.pathsep.join([str(repository), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"}
        command = [
            sys.executable,
            str(repository / f"benchmarks/{script}.py"),
            *map(str, arguments),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=500
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    return run


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_a_power_law_gives_its_exponent(exponent, scaling):
    costs = [3e-4 * size**exponent for size in SIZES]
    assert scaling.fit_exponent(SIZES, costs) == pytest.approx(exponent, abs=1e-9)
    assert scaling.describe_growth(SIZES, costs, exponent) == {
        "exponent": exponent,
        "last": exponent,
        "work": exponent,
        "worse": False,
    }


def test_least_squares_and_the_last_doubling(scaling):
    # Logs to the base 2 of 1, 2, 16 at 1, 2, 4 are 0, 1, 4 at 0, 1, 2: the line's slope is (4 - 0)
    # / 2, the last step's 3.
    found = scaling.describe_growth((1, 2, 4), (1, 2, 16), 2.0)
    assert (found["exponent"], found["last"], found["worse"]) == (2.0, 3.0, False)


@pytest.mark.parametrize(
    ("exponent", "worse"), [(1.0, False), (1.09, False), (1.11, True), (2.0, True)]
)
def test_worse_than_the_work(exponent, worse, scaling):
    costs = [0.01 * size**exponent for size in SIZES]
    assert scaling.describe_growth(SIZES, costs, 1.0)["worse"] is worse


def test_constant_costs_hide_growth_in_the_fit_and_less_so_in_the_last_doubling(scaling):
    found = scaling.describe_growth(SIZES, [100_000 + size**2 for size in SIZES], 2.0)
    assert 0 < found["exponent"] < found["last"] < 2


def options(**values):
    """The arguments that `curves` and `lines` read."""
    sizes = {
        "sizes": [64, 128],
        "batches": [1, 2, 4],
        "widths": [0.25, 0.5],
        "images": [1, 2],
        "size": 64,
        "batch": 1,
        "width": 0.5,
    }
    return Namespace(
        **{
            "axes": ("resolution", "batch"),
            "parts": ("kid",),
            "precision": "float32",
            **sizes,
            **values,
        }
    )


def test_curves(scaling):
    curves = scaling.make_curves(options(only=("step", "images"), model=("can", "contextual")))
    assert [(curve.part, curve.axis, curve.sizes) for curve in curves] == [
        ("can", "resolution", [64, 128]),
        ("can", "batch", [1, 2, 4]),
        ("contextual", "resolution", [64, 128]),
        ("contextual", "batch", [2, 4]),  # it needs two patches
        ("kid", "images", [500, 1000]),
    ]
    # 64 px are halved six times
    assert {(point.batch, point.width, point.depth) for point in curves[0].points} == {(1, 0.5, 6)}
    assert {point.batch for point in curves[2].points} == {2}


def test_lines_judge_each_quantity_by_its_own_work(scaling):
    """A step grows like pixels^1, its FLOPs like the root of that; KID grows like n^2."""
    curves = scaling.make_curves(options(only=("step", "images"), model=("can",)))
    costs = {}
    for point in (point for curve in curves for point in curve.points):
        cost = point.batch * point.size**2 if point.part == "can" else point.images**2
        costs[point] = {"seconds": cost, "processor_seconds": cost, "megabytes": cost}
        costs[point] |= (
            {"gflop": point.batch * point.size, "million_weights": 7.0}
            if point.part == "can"
            else {}
        )
    rows = {
        (row["part"], row["axis"], row["quantity"]): row
        for row in scaling.make_lines(curves, costs, options())
    }
    time = rows["can", "resolution", "seconds"]
    memory = rows["can", "resolution", "megabytes"]
    assert (time["exponent"], time["work"], time["worse"]) == (2, 1, True) and (
        memory["work"],
        memory["worse"],
    ) == (2, False)
    assert time["points"] == [[64, 4096], [128, 16380]] and time["at"] == {
        "batch": 1,
        "width": 0.5,
        "depth": 6,
    }
    assert not rows["can", "batch", "processor_seconds"]["worse"]
    assert all(
        rows["kid", "images", quantity]["worse"]
        for quantity in ("seconds", "processor_seconds", "megabytes")
    )


def test_a_steps_work_is_its_flops_or_its_weights(scaling):
    (curve,) = scaling.make_curves(options(only=("step",), model=("can",), axes=("width",)))
    costs = {
        point: {"seconds": 1.0, "processor_seconds": 1.0, "megabytes": 9.0, "gflop": 3.0}
        for point in curve.points
    }
    for point in curve.points:
        costs[point]["million_weights"] = 5 * point.width**2
    assert [row["work"] for row in scaling.make_lines([curve], costs, options())] == [2, 2, 2]


def test_memory_that_is_hardly_any_has_no_line(scaling):
    (curve,) = scaling.make_curves(options(only=("images",)))
    costs = {
        point: {"seconds": 1.0, "processor_seconds": 1.0, "megabytes": 0.5}
        for point in curve.points
    }
    assert [row["quantity"] for row in scaling.make_lines([curve], costs, options())] == [
        "seconds",
        "processor_seconds",
    ]


def test_points_once_for_all_curves_and_medians_of_rounds(scaling, monkeypatch):
    """The process of a point replaced by numbers: 1, 2, then 9 seconds for each."""
    shared = scaling.Point("can", size=64)
    other = scaling.Point("can", size=128)
    curves = [
        scaling.Curve("can", "resolution", (shared, other)),
        scaling.Curve("can", "batch", (shared,)),
    ]
    order = []

    def once(point, chosen, count):
        order.append((point, count))
        seconds = (1.0, 2.0, 9.0)[(len(order) - 1) // 2]
        return {"seconds": seconds} | ({"gflop": 7.0} if count else {})

    monkeypatch.setattr(scaling, "_measure_once", once)
    found = scaling.measure(curves, Namespace(rounds=3))
    assert order == [(shared, True), (other, True)] + 2 * [(shared, False), (other, False)]
    assert found == {shared: {"seconds": 2.0, "gflop": 7.0}, other: {"seconds": 2.0, "gflop": 7.0}}


def test_a_plot_and_a_table_of_every_line(scaling):
    rows = [
        {
            "part": part,
            "axis": axis,
            "quantity": quantity,
            "points": [[1, 1.0], [2, 3.0]],
            **scaling.describe_growth((1, 2), (1.0, 3.0), 1.0),
        }
        for part, axis in (("can", "batch"), ("froc", "images"))
        for quantity in ("processor_seconds", "megabytes")
    ]
    figure = scaling.plot(rows)
    text = scaling.make_table(rows).markdown()
    assert len(figure.axes) == 4 and text.count("| worse |") == 4 + 1  # the heading's
    labels = [label.get_text() for axes in figure.axes for label in axes.get_legend().get_texts()]
    assert labels == 2 * ["can 1.58", "work 1", "froc 1.58", "work 1"]


def test_flops_are_those_of_the_convolutions(scaling):
    """A convolution 3 x 3 of 2 to 3 channels on 8 x 8 px has 2 * 64 * 9 * 2 * 3 operations."""
    import tensorflow as tf
    from workloads import count_flops

    class Model:
        kernel = tf.ones((3, 3, 2, 3))

        def train_step(self, batch):
            return {"loss": tf.nn.conv2d(batch["image"], self.kernel, 1, "SAME")}

    assert [count_flops(Model(), {"image": tf.zeros((1, side, side, 2))}) for side in (8, 16)] == [
        6912,
        4 * 6912,
    ]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("can", {"filters": (16, 32, 64), "discriminator_filters": 16}),
        ("mask_gan", {"discriminator_filters": (8, 16, 32, 64, 128, 256)}),
        ("blending", {"widths": (16, 32, 64, 128, 256), "discriminator_filters": 16}),
        ("flow", {"widths": (8, 16, 32, 40)}),
        ("classifier", {"filters": 16, "weights": "none"}),
        ("fcn8s", {"widths": (16, 32, 64, 128, 128), "fc_width": 1024, "weights": "none"}),
        ("contextual", {"filters": (4, 8, 16, 32), "start": 64, "attention": 32}),
    ],
)
def test_every_model_has_a_quarter_of_its_filters(part, expected, scaling):
    from workloads import make_config

    config = make_config(scaling.Point(part, size=64, width=0.25, depth=3))
    assert expected.items() <= config.items()


@pytest.mark.parametrize(("part", "labels"), [("contextual", [0, 2, 2]), ("blending", [0, 1, 1])])
def test_batches_of_models_with_labels_have_both(part, labels, scaling):
    from workloads import make_batch

    batch = make_batch(scaling.Point(part, size=8, batch=3))
    assert batch["label"].tolist() == labels
    assert "label" not in make_batch(scaling.Point("can", size=8, batch=3))
    assert scaling.MIN_BATCH[part] == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak can start anew on Linux alone")
def test_memory_is_what_was_added_whatever_the_process_had_before(scaling):
    from workloads import peak_megabytes, reset_peak

    had = np.ones(12_500_000)  # 100 MB
    before = reset_peak()
    del had
    assert reset_peak() == pytest.approx(before - 95.4, abs=5)  # 1e8 / 2^20
    before = reset_peak()
    added = np.ones(6_250_000)
    assert peak_megabytes() - before == pytest.approx(47.7, abs=5) and len(added)


@pytest.mark.slow
@pytest.mark.nightly
def test_scaling_at_a_tiny_size(measured, tmp_path):
    small = (
        "--sizes",
        16,
        32,
        "--batches",
        1,
        2,
        "--widths",
        0.1,
        "--size",
        16,
        "--width",
        0.1,
        "--rounds",
        1,
        "--steps",
        1,
    )
    rows, table = measured(
        "scaling",
        "--model",
        "can",
        "--axes",
        "resolution",
        "--parts",
        "froc",
        "--images",
        1,
        2,
        "--plot",
        "growth.png",
        *small,
    )
    assert [(row["part"], row["axis"], row["quantity"]) for row in rows][:3] == [
        ("can", "resolution", quantity)
        for quantity in ("seconds", "processor_seconds", "megabytes")
    ]
    assert 1.8 < rows[0]["work"] < 2.2 and rows[0]["at"] == {"batch": 1, "width": 0.1, "depth": 4}
    for row in rows:
        (first, little), (last, much) = row["points"]
        assert (
            row["exponent"]
            == row["last"]
            == pytest.approx(np.log(much / little) / np.log(last / first), abs=2e-3)
        )
        assert f"| {row['part']} | {row['axis']} {first} to {last} | {row['quantity']} |" in table
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(
    "part",
    [
        *("index", "split", "plan", "build", "small_build", "pipeline", "synthesis"),
        *("ssim", "segmentation", "jafroc", "fid", "kid"),
    ],
)
def test_every_part_over_images(part, measured):
    ((found,), _) = measured("workloads", json.dumps({"part": part, "images": 4}))
    assert (
        set(found) == {"seconds", "processor_seconds", "megabytes"}
        and min(found["seconds"], found["processor_seconds"]) > 0
    )


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(
    "part",
    [
        *("cgan", "infilling", "contextual", "mask_gan", "blending"),
        *("flow", "classifier", "unet", "segnet", "fcn8s"),
    ],
)
def test_every_model(part, measured):
    point = json.dumps({"part": part, "size": 64, "batch": 2, "width": 0.25, "depth": 3})
    ((found,), _) = measured("workloads", point, "--steps", 1, "--count")
    assert min(found.values()) > 0 and set(found) == {
        "seconds",
        "processor_seconds",
        "megabytes",
        "gflop",
        "million_weights",
    }


@pytest.mark.slow
@pytest.mark.nightly
def test_inference_beside_its_peers(measured):
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `benchmark` is not installed")
    small = ("--size", 32, "--filters", 4, 8, 8, "--batches", 1, 2, "--rounds", 3, "--patches", 4)
    ((found,), _) = measured("inference", "--peers", "torch", "onnx", *small)
    assert (
        found["benchmark"] == "inference"
        and found["apart"] < 1e-4
        and set(found["batches"]) == {"1", "2"}
    )
    for batch in found["batches"].values():
        assert set(batch["ratio"]) == {"torch", "onnx"} and len(batch["rounds"]) == 3
        for place, peer in enumerate(("torch", "onnx"), start=1):
            ratios = [row[place] / row[0] for row in batch["rounds"]]
            assert min(ratios) * 0.9 <= batch["ratio"][peer] <= max(ratios) * 1.1

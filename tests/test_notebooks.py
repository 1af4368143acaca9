"""The notebooks of the documentation run from top to bottom, as they are."""

import json
import os
import re
from pathlib import Path

import matplotlib
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))


# What the main cells of each notebook leave behind.
def assert_compare_segmenters(names):
    means, apart = names["tables"][:2]
    models = ["can", "unet", "segnet"]
    assert [line[0] for line in means.body] == [*models, "whole patch", "centred disc"]
    assert all(0 < float(cell) < 100 for line in means.body[:3] for cell in line[1:3])
    assert [line[0] for line in apart.body][:3] == ["unet - can", "segnet - can", "segnet - unet"]
    written = {path.name for path in (names["output"] / "scores").iterdir()}
    assert {"table.md", "rows.csv", "per_image.csv", "roc.png", "figure-can.png"} <= written
    shape = (*names["held_out"].images[:5].shape[:3], 1)
    assert all(names["rows"][name].shape == shape for name in models)


def assert_first_steps(names):
    assert not {*names["train"].patient_ids} & {*names["held_out"].patient_ids}
    before, after = names["normal"].pixels()[..., 0], names["edit"].pixels()[..., 0]
    mask = names["edit"].mask
    assert (before[mask > 0] != after[mask > 0]).mean() > 0.5
    assert (names["output"] / "synthetic.dcm").stat().st_size > mask.size
    held_out = names["held_out"].images
    for answer in (names["masks"], names["images"]):
        assert answer.shape == held_out.shape
        assert answer.min() >= 0 and answer.max() <= 1 and answer.std() > 0
    assert names["scores"]["dice"].shape == (len(held_out),)


def assert_own_data(names):
    assert len(names["archive"]) == 24
    (reason,) = names["skipped"].reasons.values()
    assert "without a patient" in reason
    folds = len(names["train"]) + len(names["held_out"])
    assert folds == len(names["patches"]) > 0 and names["shared"] == set()
    assert names["edit"].kind == "mass" and names["edit"].mask.any()
    assert (names["config"].data.name, names["config"].training.steps) == ("folder", 1000)
    assert names["config"].data.root == names["root"]


CHECKS = {
    "compare_segmenters": assert_compare_segmenters,
    "first_steps": assert_first_steps,
    "own_data": assert_own_data,
}


def read_cells(path):
    """(kind, source) of every cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_on_the_site(path):
    assert path.stat().st_size < 200_000 and path.stem in CHECKS
    site = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"notebooks/{path.name}" in site
    links = [
        link
        for kind, source in read_cells(path)
        for link in re.findall(r"\]\((?!https:)([^)]+)\)", source)
        if kind == "markdown"
    ]
    # the site's plugin leaves them as they are
    for link in links:
        assert link.endswith(".html") and (path.parent / link).with_suffix(".md").is_file(), link


@pytest.mark.long
@pytest.mark.parametrize(
    "path",
    [
        # three training runs in processes of their own
        pytest.param(path, marks=[pytest.mark.nightly] * (path.stem == "compare_segmenters"))
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(path, tmp_path, monkeypatch, tracking_uri):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY)]))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    names = {"__name__": "notebook"}
    try:
        for number, (kind, source) in enumerate(read_cells(path)):
            if kind == "code":
                exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
        CHECKS[path.stem](names)
    finally:
        names["plt"].close("all")
        matplotlib.use(backend)

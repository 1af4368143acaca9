"""The notebooks of the documentation run from top to bottom, as they are."""

import json
import os
import re
from pathlib import Path

import matplotlib
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))


def read_cells(path):
    """(kind, source) of every cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def test_there_are_three_and_all_are_on_the_site():
    site = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3
    assert all(f"notebooks/{path.name}" in site for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000
    shown = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(?:home|root|work|Users)/|Traceback", shown)
    assert not [line for kind, source in read_cells(path) for line in source.splitlines()
                if kind == "code" and line.startswith(("%", "!"))]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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
    finally:
        names["plt"].close("all")
        matplotlib.use(backend)


def test_links_lead_to_pages_of_the_site():
    """The site's plugin leaves links of notebooks as they are."""
    links = [
        (path, link)
        for path in NOTEBOOKS
        for kind, source in read_cells(path)
        for link in re.findall(r"\]\((?!https:)([^)]+)\)", source)
        if kind == "markdown"
    ]
    assert links
    for path, link in links:
        assert link.endswith(".html"), link
        assert (path.parent / link).with_suffix(".md").is_file(), link

"""Guides that run as they are printed: your own loop, and from nothing to a model of your own."""

import json
import shlex
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from tests.commands import run_module_here
from tests.test_docs import blocks

SHORT = ("training.steps=2", "training.steps_per_loop=1", "tracking.system_metrics=false")


@pytest.mark.slow
def test_the_four_programs_of_the_own_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "own_loop"}
    programs = blocks("docs/guides/own_loop.md", "python")
    assert len(programs) == 4
    for block in programs:
        if "import torch" in block and not find_spec("torch"):
            continue
        exec(compile(block, "own_loop.md", "exec"), names)
    train = names["train"]
    assert names["images"].shape == names["targets"].shape == (8, 128, 128, 1)
    assert set(np.unique(names["targets"])) == {0, 1} and names["targets"].dtype == "float32"
    redrawn = names["generator"](names["targets"])["image"]
    np.testing.assert_allclose(names["images"], redrawn, atol=1e-4)
    assert names["scores"]["dice"].shape == (len(names["held_out"]),)
    if "torch" in names:
        assert tuple(names["batch_images"].shape) == (8, 1, 128, 128)
        assert names["batch_masks"].dtype == names["torch"].float32
    assert len(names["augmented"]) == len(train) + round(len(train) / 2)


def write_messy_folder(root):
    """Six crops of phantoms' masses, with names, suffixes and places as people have them."""
    import tfmammo

    patches = tfmammo.make_patches(
        tfmammo.open_archive("phantom", phantoms=16), size=160, frame="padded", padding=6
    )
    names = ["A 1.PNG", "b.tif", "left/c.jpeg", "left/d.png", "e.1.bmp", "f.pgm"]
    masks = ["masks/A 1.png", "masks/b_mask.png", "masks/c.png", "masks/left/d.png"]
    masks += ["masks/e.1.png", "images/f_seg.png"]
    for row, (name, mask) in enumerate(zip(names, masks, strict=True)):
        for file, picture in {
            root / "images" / name: np.rint(255 * patches.images[row]),
            root / mask: 255 * patches.masks[row],
        }.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(file), picture.astype(np.uint8)), file
    rows = [f"{name};patient {number}" for number, name in enumerate(names)]
    (root / "metadata.csv").write_text("\n".join(["file;patient", *rows]), encoding="utf-8")


@pytest.mark.long
def test_the_seven_commands_of_the_first_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_messy_folder(tmp_path / "DIR")
    commands = [
        shlex.split(line, comments=True)
        for block in blocks("docs/guides/first_steps.md", "sh")
        for line in block.splitlines()
    ]
    assert [words[0] for words in commands] == ["pip"] + 6 * ["tfmammo"]
    for _, *words in commands[1:]:
        if words[0] == "train":
            words = [*words[:-2], *SHORT, *words[-2:]]
        if words[0] == "evaluate":
            words = [*words[:-2], "samples=100", *words[-2:]]
        done = run_module_here("tfmammo", *words)
        assert done.returncode == 0, (words, done.stderr)
    assert len(list((tmp_path / "predicted/masks").rglob("*.png"))) == 6
    assert cv2.imread("predicted/masks/left/c.png").shape[:2] == (160, 160)
    table = (tmp_path / "after/rows.csv").read_text(encoding="utf-8")
    assert "mine" in table and "zoo" in table and "centred disc" in table
    card = json.loads((tmp_path / "runs/mine/export/card.json").read_text(encoding="utf-8"))
    assert card["config"]["model"]["filters"] == [16, 32, 64, 128, 128, 128, 128]
    scores = (tmp_path / "mine/scores.csv").read_text(encoding="utf-8").splitlines()
    # a third of the patients is held out
    assert len(scores) == 7 and sum(",False," in line for line in scores) == 2

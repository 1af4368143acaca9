"""Models whose answers are known, and an archive for them."""

import numpy as np
import pytest

from tests.inference.drawings import BOX, COLS, OTHER, ROWS, draw, write_image
from tests.small_pipelines import save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with "detector", "segmenter" and "shape"."""
    root = tmp_path_factory.mktemp("models")
    save_models(root, [BOX, OTHER], ROWS, COLS)
    return root


@pytest.fixture
def archive(tmp_path):
    """A folder of mammograms with masks of the lesion in BOX, one of them of patient p1."""
    root = tmp_path / "archive"
    lines = ["file,patient"]
    for number in range(3):
        write_image(root / f"images/{number}.png", draw(number))
        write_image(root / f"masks/{number}.png", 255 * (draw(number) > 200).astype(np.uint8))
        lines.append(f"{number}.png,p{number}")
    (root / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return root

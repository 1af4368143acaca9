"""Every reader against damaged files: a record, a named skip or one sentence, nothing else.

TFMAMMO_FUZZ_SEED asks for other damage, as the nightly run does from day to day. A failure prints
the seed.
"""

import os
import random
import signal
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.archives import fuzz
from tests.archives.tools import make_originals
from tfmammo.archives import folder
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion

SEED = int(os.environ.get("TFMAMMO_FUZZ_SEED", 0))


@pytest.fixture(autouse=True)
def in_time():
    """A fraction of a second is usual for one archive, minutes or for ever is the fault."""

    def stop(*_):
        raise TimeoutError("took more than 20 s")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", sorted(fuzz.WRITERS))
@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.nightly)])
def test_damaged_files(name, count, tmp_path):
    root = tmp_path / "archive"
    fuzz.WRITERS[name](make_originals(), root)
    assert fuzz.outcome(name, root) == "record", "the archive is not whole before it is damaged"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    before = sorted(tmp_path.rglob("*"))
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{SEED}/{name}/{number}")
        path = rng.choice(files)
        content = path.read_bytes()
        print(f"TFMAMMO_FUZZ_SEED={SEED}, number {number}: {path.name}")
        fuzz.damage(path, rng)
        signal.alarm(20)
        outcomes[fuzz.outcome(name, root)] += 1
        fuzz.repair(path, content)
        assert sorted(tmp_path.rglob("*")) == before, "a reader wrote or removed a file"
    assert outcomes["record"] < count, "the damage did nothing"


def endless_pages(path) -> bytes:
    Image.new("L", (8, 8), 9).save(path)
    one = path.read_bytes()
    at = int.from_bytes(one[4:8], "little")
    end = at + 2 + 12 * int.from_bytes(one[at : at + 2], "little")
    page = one[at:end] + struct.pack("<I", at)  # the next one is the first again
    return one[:end] + struct.pack("<I", len(one)) + one[end + 4 :] + page


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 44 60\n%%EndComments\nshowpage\n"
CLAIMS = {
    "a.tif": endless_pages,
    "b.tif": lambda _: b"II*\0\x08\0\0\0\xff\xff",
    "b.jpg": lambda _: EPS,  # Pillow would start Ghostscript
}


@pytest.mark.parametrize("name", CLAIMS)
def test_pictures_that_claim_too_much(name, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("started"))
    path = tmp_path / name
    path.write_bytes(CLAIMS[name](path))
    signal.alarm(20)
    with pytest.raises(ArchiveError, match=name):
        folder.read_one(path)


def test_a_single_pipe_is_no_mammogram(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    signal.alarm(20)
    with pytest.raises(ArchiveError, match=r"a\.png: is no file"):
        folder.read_one(tmp_path / "a.png")


# Outlines, whose drawing takes time by their length and crossings


@pytest.mark.parametrize("end", [3e7, 1e30])
def test_an_outline_far_outside_the_image_is_refused(end):
    with pytest.raises(ValueError, match="is far outside the image"):
        Lesion.from_outline("mass", np.array([[0, 0], [0, end], [9, 9]]), 4000, 3000)


def test_an_outline_is_drawn_in_time():
    end = 3e4
    signal.alarm(20)
    angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    radius = np.where(np.arange(300) % 2, end, end / 2)
    star = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)  # around the image
    assert Lesion.from_outline("mass", star, 4000, 3000).box == (0, 0, 4000, 3000)
    tangle = np.random.default_rng(0).uniform(0, 3000, (20_000, 2))
    with pytest.raises(ValueError, match="crosses itself too often"):
        Lesion.from_outline("mass", tangle, 4000, 3000)


def test_a_hole_between_crossing_edges_stays_one():
    """A figure of eight far wider than the image: even-odd, its crossing in the middle."""
    outline = np.array([[-3e4, -3e4], [3e4 + 60, 3e4 + 60], [3e4 + 60, -3e4], [-3e4, 3e4 + 60]])
    drawn = Lesion("mass", (0, 0, 1, 1), (outline,)).mask(60, 60)
    assert drawn[:25, 30].all() and drawn[-25:, 30].all()
    assert not drawn[30, :25].any() and not drawn[30, -25:].any()

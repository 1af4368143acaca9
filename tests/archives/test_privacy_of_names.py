"""Names of files may be patients': they reach no log and no list that is passed on, and
their owner finds them all the same.
"""

import csv
import io
import logging
from collections import defaultdict

import numpy as np
import pytest

from tests.archives.folders import picture
from tfmammo.archives import __main__ as command
from tfmammo.archives import pictures, read_mammograms
from tfmammo.archives.files import make_pseudonym, remove_names
from tfmammo.config import DataConfig
from tfmammo.data import datasets
from tfmammo.data.extraction import make_patches
from tfmammo.mammogram import Skipped, hash_id

NAME = "M\u00fcller, Anna 1950"


@pytest.fixture
def archive(tmp_path):
    """Anna has a damaged image, a mask without a lesion, and one of another size; Berta is well."""
    grey = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    region = np.zeros((64, 64), np.uint8)
    region[20:40, 20:40] = 255
    root = tmp_path / "archive"
    for name, pixels in {
        **dict.fromkeys((f"images/{NAME}/empty", f"images/{NAME}/small", "images/berta"), grey),
        f"images/{NAME}/dark": grey.astype(np.uint16) * 20,  # 12 bits of 16
        f"masks/{NAME}/dark": np.maximum(region, grey // 2),  # with a grey rim
        "masks/berta": region,
        f"masks/{NAME}/empty": 0 * region,
        f"masks/{NAME}/small": region[:50],
    }.items():
        picture(root / f"{name}.png", pixels)
    (root / "images" / NAME / "broken.png").write_bytes(b"no image")
    (root / "metadata.csv").write_text(
        f'file,patient\nberta.png,b\n"{NAME}/empty.png",a\n'
        f'"{NAME}/small.png",a\n"{NAME}/broken.png",a\n"{NAME}/dark.png",a\n',
        encoding="utf-8",
    )
    return root


def test_no_name_reaches_the_log(archive, caplog, monkeypatch):
    pictures._advised.clear()
    with caplog.at_level(logging.DEBUG, "tfmammo"):
        datasets.load_all_patches(DataConfig(name="folder", root=archive, size=16))
        assert len(caplog.records) > 3
        monkeypatch.chdir(archive)
        datasets.load_all_patches(DataConfig(name="folder", root=".", size=16))
    assert "ller" not in caplog.text and "Anna" not in caplog.text and "1950" not in caplog.text
    broken = make_pseudonym(f"images/{NAME}/broken.png")
    assert f"skipped {broken}: can't be read as an image" in caplog.text
    assert caplog.text.count("some images: values use 6 % of 16 bits") == 1
    assert caplog.text.count("some masks have more than two intensities") == 1
    mask = make_pseudonym(f"masks/{NAME}/empty.png")
    empty = hash_id("folder", f"{NAME}/empty")
    assert f"skipped {empty}: lesion 0: {mask}: marks nothing" in caplog.text


def test_the_reason_stays_whatever_the_path_is_like(archive):
    root = archive
    broken = f"images/{NAME}/broken.png"
    reasons = {
        "20000001": f"lesion 1: {root}/{broken}: the file ends early; "
        f"{root}/masks/berta.png: marks nothing",
        "metadata.csv": "1 of its 3 files are no image or mask here",
        "images/*": "2 files of other kinds",
        "gone": f"{root}/images/{NAME}/gone.png: no such file",
        "abc~1": "lesion 0: is not in sight",
    }
    told = remove_names(reasons | {broken: "its pixels (F) are not of 8 or 16 bits"}, root)
    one, other = make_pseudonym(broken), make_pseudonym("masks/berta.png")
    assert told == reasons | {
        "20000001": f"lesion 1: {one}: the file ends early; {other}: marks nothing",
        "gone": "a file: no such file",
        one: "its pixels (F) are not of 8 or 16 bits",
    }
    assert one != other


def test_the_owner_finds_the_file_behind_every_pseudonym(archive, capsys, caplog):
    with caplog.at_level(logging.DEBUG):
        command.main(["folder", str(archive), "--list"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    by_pseudonym = defaultdict(list)
    for row in rows:
        by_pseudonym[row["pseudonym"]].append(row["file"])
    files = [f"{folder}/{NAME}/empty.png" for folder in ("images", "masks")]
    assert by_pseudonym[hash_id("folder", f"{NAME}/empty")] == files
    broken = f"images/{NAME}/broken.png"
    assert by_pseudonym[make_pseudonym(broken)] == [broken]
    assert {row["patient"] for row in rows} == {hash_id("folder", "a"), hash_id("folder", "b"), ""}
    skipped = Skipped()
    config = DataConfig(name="folder", root=archive, size=16)
    patches = make_patches(read_mammograms(config, skipped), config, skipped)
    assert {name.partition("#")[0] for name in patches.ids} <= by_pseudonym.keys()
    assert "Anna" not in caplog.text


def test_masks_are_looked_at_with_the_archive(archive, capsys):
    (archive / "masks/berta.png").write_bytes(b"no picture")
    command.main(["folder", str(archive), "--skipped", str(archive / "=left.csv")])
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("masks that can't be used", "1 empty", "1 of a wrong size", "1 unreadable"):
        assert words in printed
    command.main(["folder", str(archive), "--quick"])
    assert "masks that can't be used" not in capsys.readouterr().out

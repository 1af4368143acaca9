"""`tfmammo archives`: the summary, the contact sheet, what is said of skipped files."""

import csv
import os
from functools import partial

import cv2
import numpy as np
import pytest

from tests.archives.writers import inbreast as writer
from tests.small_mammograms import make_mammogram, make_rectangle, refuse
from tfmammo.archives import __main__ as command
from tfmammo.archives.contact_sheet import CAPTION, CELL, COLOURS, _caption, draw_contact_sheet
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Lost, Mammogram, MaskedLesion, Skipped

# half a cell: enlarged twice
ROWS = 160
COLS = 128
SQUARE = make_rectangle(40, 30, 101, 91, size=(ROWS, COLS))


def grey() -> np.ndarray:
    return np.full((ROWS, COLS, 1), 0.5, np.float32)


def disc() -> np.ndarray:
    return cv2.circle(np.zeros((ROWS, COLS), np.uint8), (64, 80), 20, 1, -1)


def mammogram(number: int, *lesions: Lesion, read=grey, **facts) -> Mammogram:
    known = {"patient_id": f"p{number // 2}", "image_id": f"image{number}"}
    return make_mammogram(number, grey(), lesions, **known | facts).with_pixels(partial(read))


def test_a_sheet_draws_each_kind_in_its_colour_where_it_lies():
    boxed = Lesion("calcification", (10, 20, 61, 81))
    masked = MaskedLesion("distortion", disc)
    originals = [mammogram(number, it) for number, it in enumerate((SQUARE, boxed, masked))]
    sheet = draw_contact_sheet(originals, Skipped(), 2)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * (CELL[0] + CAPTION) + CAPTION, 2 * CELL[1], 3)
    # Native px p is at 2 p + 0.5 here, so a line there covers rows 2 p and 2 p + 1.
    assert np.abs(sheet[80:82, 100].astype(int).max(axis=0) - COLOURS["mass"]).max() < 140
    # red on the line, grey beside it
    assert sheet[80, 100, 0] > sheet[80, 100, 2] + 40 and np.ptp(sheet[75, 100]) == 0
    assert sheet[20, CELL[1] + 60, 2] > sheet[20, CELL[1] + 60, 0] + 40
    beneath = sheet[CELL[0] + CAPTION :, : CELL[1]]
    # the disc's uppermost point
    assert beneath[2 * 60, 2 * 64, 1] > beneath[2 * 60, 2 * 64, 2] + 40
    assert not sheet[CELL[0] + CAPTION : -CAPTION, CELL[1] :].any()  # the cell that is left over
    legend = sheet[-CAPTION:].astype(int)
    for colour in COLOURS.values():
        assert np.abs(legend - colour).max(axis=-1).min() < 40


def test_a_sheet_draws_grey_values_as_they_are_and_its_caption_says_what_is_odd():
    dark = np.full((ROWS, COLS, 1), 4000 / 65535, np.float32)
    sheet = draw_contact_sheet([mammogram(0, read=dark.copy, bits=16)], Skipped())
    assert sheet[10, 10].tolist() == [16] * 3  # 255 * 4000 / 65535 = 15.6
    odd = _caption(mammogram(0, bits=16), 4000 / 65535)
    assert odd == "values use 6 % of 16 bits; state bits=12"
    # nobody knows of how many bits a DICOM's greys are
    for bits, highest in ((16, 0.9), (None, 0.9), (None, 0.01)):
        assert _caption(mammogram(0, bits=bits), highest) == "image0 L CC "


def test_a_sheet_leaves_out_what_cannot_be_read():
    skipped = Skipped()
    unread = [mammogram(0, read=refuse), mammogram(1, MaskedLesion("mass", refuse))]
    sheet = draw_contact_sheet(unread, skipped)
    assert sheet.shape == (CELL[0] + 2 * CAPTION, CELL[1], 3) and sheet[10, 10, 0] == 128
    assert skipped.reasons == {"image0": "P1.jpg: broken", "image1": "lesion 0: P1.jpg: broken"}
    with pytest.raises(ArchiveError, match="none of the mammograms"):
        draw_contact_sheet(unread[:1], Skipped())


def test_a_summary_reads_no_mask_and_counts():
    def never() -> np.ndarray:
        raise AssertionError("a summary reads no mask")

    masked = MaskedLesion("mass", never, pathology="malignant")
    records = [
        mammogram(0, Lesion("mass", (0, 0, 5, 5), pathology="benign"), masked),
        mammogram(1, official_split="train", lost=(Lost(), Lost("mass"), Lost("mass"))),
        mammogram(2, spacing=(0.07, 0.07), pathology="normal"),
    ]
    table = command.summary(records, "test")
    cells = dict(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert table.title == "test: 3 mammograms of 2 patients"
    assert cells["mass"] == "1 benign, 1 malignant"
    assert cells["lesions given by"] == "1 box, 1 mask file"
    assert cells["lesions"] == "2 images without, 1 images with"
    assert cells["lost on reading"] == "2 mass, 1 of unknown kind"


def test_the_command_on_files(tmp_path, capsys):
    originals = [mammogram(number, SQUARE) for number in range(3)]
    paths = writer.write(originals, tmp_path / "archive")
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    sheet, table = tmp_path / "out/sheet.png", tmp_path / "left.csv"
    arguments = ["inbreast", str(tmp_path / "archive"), "--sheet", str(sheet), "--skipped"]
    command.main([*arguments, str(table)])
    printed = capsys.readouterr().out
    assert "inbreast: 2 mammograms of 2 patients" in printed and "the file ends early" in printed
    assert cv2.imread(str(sheet)).shape == (CELL[0] + 2 * CAPTION, 2 * CELL[1], 3)
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"].endswith(paths[0].name) and "ends early" in row["reason"]
    paths[0].unlink()  # nothing is skipped any more, and the list must not say what once was
    command.main([*arguments, str(table)])
    assert table.read_text().splitlines() == ["file,reason"]
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    command.main([*arguments, str(tmp_path / "pipe")])
    assert os.read(reader, 100) == b"file,reason\n"
    os.close(reader)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inbreast"], "root is missing: the folder of inbreast"),
        (["inbreast", "nowhere"], "no such folder: nowhere"),
        (["cdd_cesm", "."], "Radiology"),
        (["phantom", "--seed", "-1"], "--seed: input should be greater than or equal to 0"),
        (["phantom", "--images", "1", "--sheet", "x.nothing"], "x.nothing: can't be written"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and words in error[-1]

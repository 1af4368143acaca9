"""The regions that `tfmammo predict --boxes` takes from a file."""

import pytest

from tests.inference.drawings import (
    BOX,
    OTHER,
    ROWS,
    draw,
    read_mask,
    write_boxes,
    write_image,
)
from tests.small_pipelines import SIZE
from tfmammo.errors import ArchiveError, ConfigError
from tfmammo.inference.predict import predict, predict_files
from tfmammo.metrics.segmentation import dice


@pytest.mark.parametrize("form", ["truth", "json", "csv", "corners"])
def test_boxes_are_given_in_any_form(models, archive, tmp_path, form):
    boxes = write_boxes(form, archive, tmp_path)
    results = list(predict(models / "segmenter", archive, boxes=boxes, archive="folder"))
    assert len(results) == 3
    for number, result in enumerate(results):
        (finding,) = result.findings
        assert finding.score == (1.0 if form == "truth" else 0.75)
        assert finding.box == (35, 45, 86, 76) and finding.output.shape == (SIZE, SIZE, 1)
        assert dice(result.mask, draw(number) > 200) > 0.95


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("name,xmin\n1,2\n", "lacks the columns file and row_min"),
        ("file,row_min,col_min,row_max,col_max\n", "has no boxes"),
        ("file,row_min,col_min,row_max,col_max\n0.png,1,2,x,4\n", "line 2 .* 'x'"),
        ("file,row_min,col_min,row_max,col_max\n0.png,9,2,9,4\n", "line 2 .*empty or is outside"),
        ("file,row_min,col_min,row_max,col_max\n0.png,500,2,900,4\n", "line 2 .*is outside"),
        ("file,row_min,col_min,row_max,col_max,kind\n0.png,1,2,9,4,lump\n", "line 2 .*kind lump"),
    ],
)
def test_a_table_that_is_none_of_boxes(models, archive, tmp_path, table, said):
    (tmp_path / "boxes.csv").write_text(table)
    with pytest.raises(ConfigError, match=f"boxes.csv: {said}"):
        list(predict(models / "segmenter", archive, boxes=tmp_path / "boxes.csv"))


def test_boxes_of_an_earlier_prediction(models, tmp_path):
    for name in ("a", "-1"):  # which a spreadsheet takes for a formula
        write_image(tmp_path / f"in/{name}.png", draw())
    predict_files(models / "detector", tmp_path / "in", tmp_path / "first")
    boxes = tmp_path / "first/lesions.csv"
    results = list(predict(models / "segmenter", tmp_path / "in", boxes=boxes))
    assert len(results) == 2
    for result in results:
        assert [each.box for each in result.findings] == [BOX, OTHER]
        assert [each.score for each in result.findings] == [0.9, 0.8]


def test_a_kind_of_other_case_is_that_kind(models, archive, tmp_path):
    table = "file,row_min,col_min,row_max,col_max,kind\n0.png,9,9,60,60,Mass\n"
    (tmp_path / "boxes.csv").write_text(table)
    first = next(predict(models / "segmenter", archive, boxes=tmp_path / "boxes.csv"))
    assert first.findings[0].kind == "mass"


def test_boxes_that_are_no_file_or_name_none(models, archive, tmp_path):
    for missing in ("missing.csv", "missing.json"):
        with pytest.raises(ConfigError, match=f"{missing}: no such file"):
            list(predict(models / "segmenter", archive, boxes=tmp_path / missing))
    predict_files(models / "detector", archive, tmp_path / "first")
    with pytest.raises(ArchiveError, match="predictions.json: has COCO results alone"):
        boxes = tmp_path / "first/predictions.json"
        list(predict(models / "segmenter", archive, boxes=boxes))


@pytest.mark.parametrize("form", ["csv", "json"])
def test_boxes_of_files_that_are_no_images_are_spoken_of(models, archive, tmp_path, caplog, form):
    boxes = write_boxes(form, archive, tmp_path)
    (archive / "images/1.png").rename(archive / "images/renamed.png")
    list(predict(models / "segmenter", archive, boxes=boxes))
    assert "1.png are not used: no image has that name" in caplog.text


def test_boxes_of_two_files_of_one_name_are_refused(models, tmp_path):
    for number in range(2):
        write_image(tmp_path / f"{number}/a.png", draw(number))
    rows = [f"{number}/a.png,9,9,60,60" for number in range(2)]
    columns = "file,row_min,col_min,row_max,col_max"
    (tmp_path / "boxes.csv").write_text("\n".join([columns, *rows]))
    arguments = {"boxes": tmp_path / "boxes.csv"}
    with pytest.raises(ConfigError, match="0/a.png and 1/a.png may both be the image a;"):
        list(predict(models / "segmenter", tmp_path / "0", **arguments))
    assert len(list(predict(models / "segmenter", tmp_path, **arguments))) == 2


def test_an_image_without_boxes_is_redone_where_it_was_a_patch(models, archive, tmp_path):
    boxes = write_boxes("csv", archive, tmp_path)
    boxes.write_text("".join(boxes.read_text().splitlines(True)[:2]))  # of the first image alone
    assert predict_files(models / "segmenter", archive, tmp_path / "out").lesions == 3
    summary = predict_files(models / "segmenter", archive, tmp_path / "out", boxes=boxes)
    assert summary.lesions == 1 and not read_mask(tmp_path / "out/masks/1.png").any()
    assert predict_files(models / "segmenter", archive, tmp_path / "out").lesions == 3


def test_boxes_of_resized_images_are_refused(models, archive, tmp_path):
    boxes = write_boxes("json", archive, tmp_path)
    stated = boxes.read_text().replace(f'"height": {ROWS}', f'"height": {ROWS // 2}')
    boxes.write_text(stated)
    with pytest.raises(ConfigError, match=rf"boxes.json: .*{ROWS}, .* but \({ROWS // 2}, "):
        list(predict(models / "segmenter", archive, boxes=boxes))

"""`tfmammo predict`: the files that it writes, the boxes that it takes, and its scores.

Models are real exports whose answers are known: the segmenter marks what is bright in its patch,
the detector finds the same boxes everywhere.
"""

import json
import shutil

import numpy as np
import pydicom
import pytest
from highdicom.seg import segread
from pycocotools.coco import COCO

import tfmammo
from tests.archives.writers import vindr
from tests.commands import run_module_here
from tests.facts import read_csv
from tests.inference.drawings import BOX, COLS, ROWS, draw, read_mask, write_boxes, write_image
from tests.known_networks import KnownSegmenter
from tests.small_mammograms import PATIENT, make_mammogram
from tests.small_pipelines import SIZE
from tests.synthetic_sets import edit_card, export_trained
from tfmammo.archives import folder
from tfmammo.config import DataConfig
from tfmammo.data.extraction import make_patches
from tfmammo.errors import ConfigError, PipelineError
from tfmammo.inference.pipeline import Pipeline, PipelineConfig
from tfmammo.inference.predict import predict, predict_files
from tfmammo.inference.report import format_label
from tfmammo.mammogram import Lesion, Skipped
from tfmammo.metrics.segmentation import dice, per_image

# of pycocotools
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(*arguments):
    return run_module_here("tfmammo.inference", *arguments)


def test_patches_of_a_messy_folder_and_what_a_second_run_does(models, tmp_path):
    source = tmp_path / "in"
    write_image(source / "a.png", draw(1))
    write_image(source / "left side" / "b.PNG", draw(2, 90, 70))
    for mask in ("a_mask.png", "masks/a.png"):
        write_image(source / mask, (draw(1) > 200).astype(np.uint8))
    for number in range(8):
        write_image(source / f"more/{number}.png", draw(number))
    (source / "bad.png").write_bytes(b"no picture")
    write_image(source / "flat.png", np.full((80, 80), 7, np.uint8))
    said = run(models / "segmenter", source, "-o", tmp_path / "out", "--overview")
    assert said.returncode == 1
    assert "bad.png: can't be read as an image (its format is not known)" in said.stderr
    assert said.stdout.splitlines()[0] == f"10 lesions in 11 images: {tmp_path / 'out'}"
    for name, image in {"a": draw(1), "left side/b": draw(2, 90, 70)}.items():
        mask = read_mask(tmp_path / f"out/masks/{name}.png")
        assert mask.shape == image.shape and set(np.unique(mask)) == {0, 255}
        assert dice(mask > 0, image > 200) > 0.95
        assert (tmp_path / f"out/overviews/{name}.png").is_file()
    assert not read_mask(tmp_path / "out/masks/flat.png").any()
    (row,) = read_csv(tmp_path / "out/failures.csv")
    assert row["image"].endswith("bad.png")
    kept = tmp_path / "out/masks/a.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out/masks/more/3.png").unlink()
    (tmp_path / "out/overviews/more/5.png").unlink()
    write_image(source / "bad.png", draw(9))
    write_image(source / "more/4.png", draw(44))
    again = run(models / "segmenter", source, "-o", tmp_path / "out", "--overview")
    assert again.returncode == 0, again.stderr
    assert kept.stat().st_mtime_ns == before and not (tmp_path / "out/failures.csv").exists()
    assert read_mask(tmp_path / "out/masks/more/3.png").any()
    assert (tmp_path / "out/overviews/more/5.png").is_file()
    np.testing.assert_array_equal(
        read_mask(tmp_path / "out/masks/more/4.png") > 0,
        next(predict(models / "segmenter", source / "more/4.png")).mask,
    )
    swallowed = run(models / "segmenter", "--kinds", "mass", source, "-o", tmp_path / "other")
    assert swallowed.returncode == 2 and "name IMAGES before --kinds" in swallowed.stderr
    refused = run(models / "segmenter", source, "-o", tmp_path / "out", "--threshold", "0.9")
    assert refused.returncode == 2 and "differs in settings" in refused.stderr


def test_nothing_stays_of_an_image_that_became_unreadable(models, tmp_path):
    for name in "ab":
        write_image(tmp_path / f"in/{name}.png", draw())
    for _ in range(2):
        summary = predict_files(
            models / "segmenter", tmp_path / "in", tmp_path / "out", overview=True
        )
        (tmp_path / "in/a.png").write_bytes(b"no picture")
    assert summary.images == 1 and list(summary.failures) == [str(tmp_path / "in/a.png")]
    assert not list((tmp_path / "out").rglob("a.*"))
    assert len(list((tmp_path / "out").rglob("b.*"))) == 3


def test_boxes_of_a_detector_give_what_the_pipeline_gives(models, tmp_path):
    record = make_mammogram(1, (draw() / 255).astype(np.float32)[..., None])
    (path,) = vindr.write([record], tmp_path / "in")
    dataset = pydicom.dcmread(path)
    for name, value in PATIENT.items():
        setattr(dataset, name, value)
    dataset.save_as(tmp_path / "in/a.dcm")
    write_image(tmp_path / "in/b.png", draw())
    images = [tmp_path / "in/a.dcm", tmp_path / "in/b.png"]
    boxes = models / "detector"
    summary = predict_files(models / "segmenter", images, tmp_path / "out", boxes=boxes)
    assert (summary.images, summary.lesions, summary.failures) == (2, 4, {})
    handles = {name: str(models / name) for name in ("detector", "segmenter")}
    pipeline = Pipeline.load(PipelineConfig(**handles))
    listed = COCO(str(tmp_path / "out/images.json"))
    found = listed.loadRes(str(tmp_path / "out/predictions.json"))
    for number, name in enumerate("ab", 1):
        expected = pipeline.predict(folder.read_one(images[number - 1]))
        assert listed.imgs[number]["file_name"] == images[number - 1].name
        entries = found.loadAnns(found.getAnnIds(number))
        masks = [found.annToMask(each) for each in entries]
        scores = [each["score"] for each in entries]
        assert scores == [round(each.score, 4) for each in expected.findings]
        for mask, finding in zip(masks, expected.findings, strict=True):
            np.testing.assert_array_equal(mask, finding.lesion.mask(ROWS, COLS))
        union = read_mask(tmp_path / f"out/masks/{name}.png") > 0
        np.testing.assert_array_equal(union, np.max(masks, axis=0))
    assert not (tmp_path / "out/segmentations/b.dcm").exists()
    predict_files(models / "detector", images, tmp_path / "boxes")
    assert not (tmp_path / "boxes/segmentations").exists()
    segmentation = pydicom.dcmread(tmp_path / "out/segmentations/a.dcm")
    assert segmentation.Modality == "SEG" and len(segmentation.SegmentSequence) == 2
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            assert b"QUIBBLE" not in path.read_bytes() and b"PIDXW" not in path.read_bytes()


def test_shapes_and_morphology_on_request(models, tmp_path, caplog):
    record = make_mammogram(1, (draw() / 255).astype(np.float32)[..., None])
    (path,) = vindr.write([record], tmp_path / "in")
    dataset = pydicom.dcmread(path)
    del dataset.StudyInstanceUID
    dataset.save_as(tmp_path / "bare.dcm")
    options = {"boxes": models / "detector", "classifier": models / "shape", "postprocess": True}
    images = [path, tmp_path / "bare.dcm"]
    summary = predict_files(models / "segmenter", images, tmp_path / "out", **options)
    assert (summary.images, summary.failures) == (2, {})
    assert "bare.dcm: has no StudyInstanceUID" in caplog.text
    (segmentation,) = (tmp_path / "out/segmentations").iterdir()
    written = segread(segmentation)
    handles = {name: str(models / name) for name in ("detector", "segmenter")}
    handles["classifier"] = str(models / "shape")
    pipeline = Pipeline.load(PipelineConfig(**handles, postprocess={}))
    expected = pipeline.predict(folder.read_one(path)).findings
    found = json.loads((tmp_path / f"out/findings/{path.stem}.json").read_text())["findings"]
    table = [row for row in read_csv(tmp_path / "out/lesions.csv") if row["file"] == path.name]
    assert [float(row["score"]) for row in table] == [entry["score"] for entry in found]
    assert [int(row["col_max"]) for row in table] == [entry["box"][3] for entry in found]
    assert [row["shape"] for row in table] == [entry["shape"] for entry in found]
    about = json.loads((tmp_path / "out/images.json").read_text())["info"]
    assert about == {"models": pipeline.describe(), "remarks": []}
    for number, (finding, entry) in enumerate(zip(expected, found, strict=True), 1):
        shape = finding.lesion.shape
        assert entry["shape"] == shape and entry["mask_box"] == list(finding.lesion.box)
        assert entry["shape_probabilities"][shape] == round(finding.probabilities[shape], 4)
        label = f"Lesion {format_label(number, finding)}"
        assert written.get_segment_description(number).segment_label == label
        assert label.endswith(f"{shape} {finding.probabilities[shape]:.2f}")


@pytest.mark.parametrize(
    ("model", "boxes", "said"),
    [
        ("light_head", None, "the card of light_head says"),
        ("segmenter", "light_head", "the card of light_head says"),
        ("segmenter", None, "there is none"),
    ],
)
def test_kinds_are_for_detectors_without_a_card(models, tmp_path, model, boxes, said):
    write_image(tmp_path / "a.png", draw())
    model = models / model if (models / model).exists() else model
    with pytest.raises(ConfigError, match=f"kinds: .*{said}"):
        list(predict(model, tmp_path / "a.png", boxes=boxes, kinds=["mass"]))


@pytest.mark.slow
def test_results_of_the_packages_own_detector_are_doubted(tmp_path, caplog):
    write_image(tmp_path / "a.png", draw())
    list(predict("light_head", tmp_path / "a.png"))
    assert "it missed half of the masses" in caplog.text


def test_patches_are_scored_as_an_evaluation_scores_them(archive, tmp_path):
    (first, *_) = tfmammo.open_archive("folder", archive)
    data = {"size": SIZE, "frame": "loose"}
    network = KnownSegmenter(40.0, -16.0)
    handle = export_trained(network, tmp_path / "model", [first.patient_id], **data)
    summary = predict_files(handle, archive, tmp_path / "out", truth=True, threshold=0.9)
    records = tfmammo.open_archive("folder", archive)[1:]
    patches = make_patches(records, DataConfig(size=SIZE, frame="full"), Skipped())
    outputs = tfmammo.load(handle)(patches.images)["mask"]
    expected = per_image(patches.masks, outputs, 0.9)
    assert (summary.scored, summary.seen) == (2, 1)
    for name, values in expected.items():
        assert summary.scores[name] == values.mean()
    rows = read_csv(tmp_path / "out/scores.csv")
    assert [row["seen"] for row in rows] == ["True", "False", "False"] and not rows[0]["dice"]
    assert [float(row["dice"]) for row in rows[1:]] == expected["dice"].tolist()
    # what other tools score: predictions beside the true lesions
    truth = COCO(str(tmp_path / "out/images.json"))
    assert len(truth.anns) == 3
    np.testing.assert_array_equal(truth.annToMask(truth.anns[1]), draw(0) > 200)


def test_a_detector_gives_boxes_and_its_hits_are_counted(models, archive, tmp_path):
    summary = predict_files(models / "detector", archive, tmp_path / "out", truth=True)
    assert summary.scores == {"sensitivity": 1.0, "false_positives_per_image": 1.0}
    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    top, left, bottom, right = BOX
    assert predictions[0]["bbox"] == [left, top, right - left, bottom - top]
    assert len(predictions) == 6 and "segmentation" not in predictions[0]
    assert not (tmp_path / "out/masks").exists()  # it draws none, and black ones would mislead
    few = predict_files(models / "detector", archive, tmp_path / "few", score=0.85)
    assert few.lesions == 3


def test_a_box_on_a_lesion_that_does_not_count_is_no_false_positive(models, archive, tmp_path):
    shutil.copytree(models / "segmenter", tmp_path / "malignant")
    edit_card(tmp_path / "malignant", '"pathologies": null', '"pathologies": ["malignant"]')
    lines = [f"{number}.png,p{number},benign" for number in range(3)]
    (archive / "metadata.csv").write_text("\n".join(["file,patient,pathology", *lines]))
    arguments = {"boxes": models / "detector", "archive": "folder", "truth": True}
    summary = predict_files(tmp_path / "malignant", archive, tmp_path / "out", **arguments)
    # of two boxes one is on the benign mass
    assert summary.scores["false_positives_per_image"] == 1
    assert "sensitivity" not in summary.scores


def test_a_mammogram_is_no_patch_and_a_detector_needs_no_boxes(models, tmp_path, caplog):
    write_image(tmp_path / "large.png", draw(0, 1600, 1700))
    with pytest.raises(PipelineError, match="large.png: has 1600 x 1700 px.*boxes"):
        list(predict(models / "segmenter", tmp_path / "large.png"))
    skipped = Skipped()
    results = predict(models / "segmenter", tmp_path / "large.png", skipped=skipped)
    assert not list(results) and len(skipped) == 1 and "too large for crops" not in caplog.text
    write_image(tmp_path / "smaller.png", draw(0, 1400, 1700))
    assert len(list(predict(models / "segmenter", tmp_path, skipped=skipped))) == 1
    assert "1 of 2 images are too large for crops" in caplog.text
    for arguments, said in {
        (models / "detector", tmp_path, ("boxes", "truth")): "is a detector",
        (models / "detector", tmp_path, ("classifier", models / "shape")): "the shapes of outlines",
        (models / "detector", tmp_path, ("postprocess", True)): "cleans the masks of a segmenter",
        (models / "segmenter", tmp_path, ("boxes", "truth")): "truth is what an archive states",
        (models / "segmenter", tmp_path / "no", ("score", 0.5)): "no such file or folder",
        (models / "segmenter", tmp_path, ("threshold", 2.0)): "threshold: ",
        (
            models / "segmenter",
            tmp_path,
            ("archive", "inbrest"),
        ): "is no archive, did you mean inbreast",
        (models / "segmenter", models, ("score", 0.5)): "no image found",
        (models / "shape", tmp_path, ("score", 0.5)): "shape: is neither a segmenter nor",
        (models / "segmenter", tmp_path / "large.png", ("archive", "folder")): "is a file",
    }.items():
        model, images, (name, value) = arguments
        with pytest.raises(ConfigError, match=said):
            list(predict(model, images, **{name: value}))


def test_a_segmenter_of_whole_images_warns_of_boxes(models, archive, tmp_path, caplog):
    shutil.copytree(models / "segmenter", tmp_path / "whole")
    edit_card(tmp_path / "whole", '"frame": "loose"', '"frame": "full"')
    for model, is_warned in ((models / "segmenter", False), (tmp_path / "whole", True)):
        caplog.clear()
        list(predict(model, archive, boxes="truth", archive="folder"))
        assert ("data.frame=full" in caplog.text) == is_warned


def test_a_lesion_that_was_lost_leaves_its_image_unscored(models, archive, tmp_path):
    """It has a result all the same, so it is no failure; nor is a stray mask."""
    shutil.copy(archive / "masks/1.png", archive / "masks/stray.png")
    arguments = {"output": tmp_path / "masks", "truth": True}
    summary = predict_files(models / "detector", archive, **arguments)
    assert (summary.images, summary.scored, summary.failures) == (3, 3, {})
    shutil.rmtree(archive / "masks")
    content = json.loads(write_boxes("json", archive, tmp_path).read_text())
    content["annotations"].append({"id": 9, "image_id": 0, "category_id": 1, "bbox": [5, 5, 0, 9]})
    (archive / "annotations.json").write_text(json.dumps(content))
    summary = predict_files(models / "detector", archive, tmp_path / "boxes", truth=True)
    assert (summary.images, summary.scored, summary.failures) == (3, 2, {})


def test_another_truth_is_scored_anew(models, archive, tmp_path):
    def score():
        arguments = {"archive": "folder", "boxes": models / "detector", "truth": True}
        return predict_files(models / "segmenter", archive, tmp_path / "out", **arguments).scores

    before = score()
    again = (tmp_path / "out/findings/1.json").stat().st_mtime_ns
    assert score() == before
    assert (tmp_path / "out/findings/1.json").stat().st_mtime_ns == again
    moved = np.roll(draw(0) > 200, 30, axis=1)
    write_image(archive / "masks/0.png", 255 * moved.astype(np.uint8))
    assert score()["dice"] < before["dice"] - 0.1
    assert (tmp_path / "out/findings/1.json").stat().st_mtime_ns == again


def test_results_among_the_images_are_no_images(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", draw(1))
    for _ in range(2):
        summary = predict_files(models / "segmenter", ".", "out", overview=True)
        assert (summary.images, summary.failures) == (1, {})


@pytest.mark.parametrize("archive", [None, "folder"])
def test_earlier_results_among_the_images_are_neither_images_nor_truth(models, tmp_path, archive):
    record = make_mammogram(1, (draw() / 255).astype(np.float32)[..., None])
    (path,) = vindr.write([record], tmp_path / "dicom")
    (tmp_path / "in").mkdir()
    path.rename(tmp_path / "in/a.dcm")
    predict_files(models / "segmenter", tmp_path / "in", tmp_path / "in/first", overview=True)
    assert (tmp_path / "in/first/segmentations/a.dcm").is_file()
    truth = archive is not None
    summary = predict_files(models / "detector", tmp_path / "in", tmp_path / "out", truth=truth)
    assert (summary.images, summary.failures) == (1, {})
    assert "sensitivity" not in summary.scores  # the archive states no lesion


def test_results_have_a_folder_of_their_own(models, archive):
    with pytest.raises(ConfigError, match="archive: has the images; name another folder"):
        predict_files(models / "segmenter", archive, archive)


def test_images_without_lesions_have_no_recall(models, tmp_path):
    write_image(tmp_path / "in/images/1.png", draw(1))
    (tmp_path / "in/metadata.csv").write_text("file,patient,pathology\n1.png,a,normal\n")
    summary = predict_files(models / "detector", tmp_path / "in", tmp_path / "out", truth=True)
    assert summary.scores == {"false_positives_per_image": 2.0}


def test_the_command_says_that_nothing_was_scored(models, tmp_path):
    write_image(tmp_path / "in/a.png", draw(1))
    said = run(models / "segmenter", tmp_path / "in", "-o", tmp_path / "out", "--truth")
    assert "not scored, because no image has an annotated lesion" in said.stdout


def test_two_images_of_one_name_are_not_mixed_up(models, tmp_path):
    write_image(tmp_path / "a/1.png", draw(1))
    write_image(tmp_path / "b/1.png", draw(2))
    both = [tmp_path / "a", tmp_path / "b"]
    summary = predict_files(models / "segmenter", both, tmp_path / "out")
    assert summary.images == 1 and "another image is called 1" in str(summary.failures)
    records = [folder.read_one(place / "1.png") for place in both]
    for _ in range(2):
        summary = predict_files(models / "segmenter", records, tmp_path / "records")
        assert summary.images == 1 and "another image is called" in str(summary.failures)


def test_of_two_images_that_differ_in_their_ending_one_is_a_failure(models, tmp_path):
    write_image(tmp_path / "in/1.png", draw(1))
    write_image(tmp_path / "in/1.tif", draw(2))
    summary = predict_files(models / "segmenter", tmp_path / "in", tmp_path / "out")
    ((name, reason),) = summary.failures.items()
    assert summary.images == 1 and name.endswith("1.tif") and "another ending" in reason


def test_a_name_keeps_what_is_no_ending_and_a_model_is_read_again(models, tmp_path):
    record = make_mammogram(1, (draw() / 255).astype(np.float32)[..., None])
    (path,) = vindr.write([record], tmp_path / "dicom")
    (tmp_path / "in").mkdir()
    path.rename(tmp_path / "in/1.2.840.1")
    shutil.copytree(models / "segmenter", tmp_path / "model")
    predict_files(tmp_path / "model", tmp_path / "in", tmp_path / "first")
    assert read_mask(tmp_path / "first/masks/1.2.840.1.png").any()
    (image,) = json.loads((tmp_path / "first/images.json").read_text())["images"]
    assert image["file_name"] == "1.2.840.1"
    export_trained(KnownSegmenter(0.0, -50.0), tmp_path / "model", size=SIZE, frame="loose")
    summary = predict_files(tmp_path / "model", tmp_path / "in/1.2.840.1", tmp_path / "second")
    assert summary.lesions == 0 and not read_mask(tmp_path / "second/masks/1.2.840.1.png").any()


def test_records_of_an_archive_are_predicted_on(models):
    record = make_mammogram(1, (draw() / 255).astype(np.float32)[..., None], [Lesion("mass", BOX)])
    (result,) = predict(models / "segmenter", record, boxes="truth")
    assert result.mammogram.image_id == "1" and result.findings[0].box == BOX
    assert result.mask[60, 60] and not result.mask[0, 0]


def test_arrays_are_no_images(models):
    with pytest.raises(ConfigError, match="images: ndarray is no file.*tfmammo.load"):
        list(predict(models / "segmenter", [draw()]))


@pytest.mark.slow
def test_several_processes_write_what_one_writes(models, archive, tmp_path):
    for jobs in (1, 2):
        options = {"boxes": "truth", "truth": True, "jobs": jobs}
        predict_files(models / "segmenter", archive, tmp_path / str(jobs), **options)
    names = [
        path.relative_to(tmp_path / "1")
        for path in (tmp_path / "1").rglob("*")
        if path.is_file() and path.name != ".lock"
    ]
    assert len(names) == 3 + 3 + 5
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name

"""Sets of every renderer and format: their files, annotations and recipes agree.

Beside lesions of their own, mammograms get one or two masses.
"""

import cv2
import numpy as np
import pydicom
import pytest
from pycocotools.coco import COCO

from tests.synthesis.conftest import BOX
from tests.synthesis_archives import (
    PATIENT_NAME,
    find_outside,
    find_source,
    list_times,
    read_image,
)
from tests.synthetic_sets import read_files
from tfmammo import archives
from tfmammo.archives import folder as archive
from tfmammo.errors import ConfigError
from tfmammo.mammogram import Skipped
from tfmammo.synthesis.mammograms import remake, synthesize

# renderer, archive, format; percentiles is an infilling without a margin
CASES = [
    ("infilling", "8", "png"),
    ("infilling", "12", "png"),
    ("infilling", "dicom", "dicom"),
    ("percentiles", "8", "png"),
    ("can", "8", "dicom"),
    ("blending", "mixed", "tfrecord"),
    ("poisson", "mixed", "png"),
    ("poisson", "dicom", "png"),
    ("mixed", "dicom", "dicom"),
    ("vanilla", "mixed", "png"),
]
PERCENTILES = {"margin": None, "window": None, "percentiles": (1, 99), "frame": "square"}
PERCENTILES |= {"context": 2.0, "preprocess": {"remove_marks": True}}


@pytest.fixture(scope="module")
def networks(can, vanilla, tiny_blending, tiny_infilling):
    """What changes a config of an infilling into one of each renderer."""
    real = {"rotate": 90.0, "mammograms": "all"}
    drawn = {"renderer": "can", "size": (20, 16), "shapes": {"drawn": "irregular"}}
    blending = tiny_blending(size=64, patients=("p",))
    return {
        "infilling": {"pathology": "malignant"},
        "percentiles": {"generator": str(tiny_infilling(**PERCENTILES))},
        "can": {**drawn, "generator": str(can()), "feather": 4.0},
        "blending": {**real, "generator": str(blending), "renderer": "blending"},
        "poisson": {**real, "renderer": "poisson"},
        "mixed": {**real, "renderer": "mixed"},
        "vanilla": {**real, "renderer": "vanilla", "generator": str(vanilla()), "feather": 3.0},
    }


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def made(request, config, networks, tmp_path_factory):
    """A set: (config, folder, recipes)."""
    renderer, form, output = request.param
    set_config = config(form, masses=(1, 2), count=4, format=output, **networks[renderer])
    root = tmp_path_factory.mktemp("sets") / renderer
    return set_config, root, synthesize(set_config, root)


def decode(lesion):
    return archives.coco.decode(lesion.region, "") > 0


def test_nothing_changes_beyond_the_lesions_surroundings(made):
    config, root, recipes = made
    assert [recipe.left_out for recipe in recipes] == [None] * 4
    assert {len(recipe.lesions) for recipe in recipes} == {1, 2}
    for recipe in recipes:
        stored = archives.read_stored(find_source(config, recipe))
        values = read_image(root, recipe)
        before = stored.values if config.format == "dicom" else stored.full_scale()
        assert values.dtype == before.dtype and values.max() < 2**stored.picture_bits
        on = np.any([decode(lesion) for lesion in recipe.lesions], axis=0)
        outside = find_outside(recipe)
        if config.renderer in ("poisson", "mixed"):
            outside = ~on
        np.testing.assert_array_equal(values[outside], before[outside])
        assert (values[on] != before[on]).mean() > 0.5
        if config.renderer == "infilling":
            change = values[on].astype(float) - before[on]
            assert change.mean() > 0.05 * 2**stored.bits, "the generator brightens the mask"


# pycocotools
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_boxes_masks_and_annotations_agree(made):
    config, root, recipes = made
    coco = COCO(str(root / "annotations.json"))
    assert len(coco.imgs) == 4
    assert len(coco.anns) == sum(len(each.lesions) + len(each.own) for each in recipes)
    for recipe in recipes:
        (image,) = coco.loadImgs([recipe.number + 1])
        assert (root / "images" / image["file_name"]).stem == recipe.name
        assert (image["height"], image["width"]) == read_image(root, recipe).shape
        annotations = coco.imgToAnns[image["id"]]
        flags = [True] * len(recipe.lesions) + [False] * len(recipe.own)
        assert [annotation["synthetic"] for annotation in annotations] == flags
        overlap = np.zeros((image["height"], image["width"]), int)
        lesions = (*recipe.lesions, *recipe.own)
        for number, (annotation, lesion) in enumerate(zip(annotations, lesions, strict=True), 1):
            top, left, bottom, right = lesion.box
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert (annotation["area"], annotation["iscrowd"]) == (lesion.area, 0)
            assert coco.cats[annotation["category_id"]]["name"] == lesion.kind
            if lesion.region is None:
                assert "segmentation" not in annotation
                continue
            mask = coco.annToMask(annotation)
            assert cv2.boundingRect(mask) == tuple(annotation["bbox"])
            assert mask.sum() == lesion.area
            overlap += cv2.dilate(mask, np.ones((3, 3))) > 0
            path = root / f"lesion_masks/{recipe.name}_{number}.png"
            if annotation["synthetic"]:
                written = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                np.testing.assert_array_equal(written, 255 * mask)
            else:
                own = find_source(config, recipe).lesions[number - len(recipe.lesions) - 1]
                np.testing.assert_array_equal(own.mask(*mask.shape), mask)
                assert not path.exists()
        assert overlap.max() == 1


def test_the_set_is_an_archive_of_ours(made):
    config, root, recipes = made
    if config.format == "tfrecord":
        return
    skipped = Skipped()
    records = archive.read(root, skipped)
    assert not skipped.reasons
    for record, recipe in zip(records, recipes, strict=True):
        source = find_source(config, recipe)
        for fact in ("laterality", "view", "spacing", "density"):
            assert getattr(record, fact) == getattr(source, fact) is not None
        assert record.pathology == config.pathology, "of own lesions it is not stated"
        lesions = (*recipe.lesions, *recipe.own)
        expected = [(lesion.kind, lesion.box) for lesion in lesions]
        assert [(lesion.kind, lesion.box) for lesion in record.lesions] == expected
        for read, lesion in zip(record.lesions, lesions, strict=True):
            if lesion.region:
                np.testing.assert_array_equal(read.mask(record.rows, record.cols), decode(lesion))
            else:
                assert read.outlines == () and lesion.box == BOX
        outside = find_outside(recipe)
        np.testing.assert_allclose(record.pixels()[outside], source.pixels()[outside], atol=1e-5)


def test_each_item_is_made_again_and_a_second_run_writes_nothing(made, where, tmp_path):
    config, root, recipes = made
    before = read_files(root)
    times = list_times(root)
    assert synthesize(config, root) == recipes and list_times(root) == times
    for recipe in recipes:
        remake(root / f"recipes/{recipe.name}.json", tmp_path / "again", where(config))
    files = {name: before[name] for recipe in recipes for name in recipe.files}
    assert read_files(tmp_path / "again") == files
    with pytest.raises(ConfigError, match="differs in places;"):
        synthesize(config.model_copy(update={"places": "breast"}), root)


def test_no_patient_data_is_left(made, folders):
    sources = list((folders / "dicom/images").iterdir())
    secrets = [word.encode() for word in PATIENT_NAME.split("^")]
    assert all(word in path.read_bytes() for path in sources for word in secrets)
    secrets += [pydicom.dcmread(path).SOPInstanceUID.encode() for path in sources]
    assert len(secrets) == 5
    for name, content in read_files(made[1]).items():
        assert not any(word in content for word in secrets), name

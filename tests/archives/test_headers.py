"""What a DICOM header states: mammogram or not, spacing, side, view, chest wall."""

import pytest
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from tests.archives.test_dicom import MAMMOGRAPHY, STORED, write_file
from tests.archives.tools import make_item
from tfmammo.archives import dicom
from tfmammo.errors import ArchiveError


@pytest.fixture
def header(tmp_path):
    """A function (**elements) -> the header of a mammogram with them."""
    return lambda **tags: dicom.read_header(write_file(tmp_path / "image.dcm", **tags))


FACTOR = "EstimatedRadiographicMagnificationFactor"
IMAGER = {"ImagerPixelSpacing": [0.075, 0.15]}
ENLARGED = IMAGER | {FACTOR: 1.5}
FILM = {"NominalScannedPixelSpacing": [0.05, 0.05]}
CALIBRATED = {"PixelSpacingCalibrationType": "GEOMETRY"}


@pytest.mark.parametrize(
    ("tags", "spacing"),
    [
        (IMAGER, (0.075, 0.15)),
        (ENLARGED, (0.05, 0.1)),
        (IMAGER | {FACTOR: 0.5}, (0.075, 0.15)),
        (ENLARGED | {"PixelSpacing": [0.06, 0.12]}, (0.06, 0.12)),
        # PS3.3 10.7.1.1: equal values without a type of calibration are not corrected
        (ENLARGED | {"PixelSpacing": [0.075, 0.15]}, (0.05, 0.1)),
        (ENLARGED | {"PixelSpacing": [0.075, 0.15]} | CALIBRATED, (0.075, 0.15)),
        (FILM, (0.05, 0.05)),
        (IMAGER | FILM, (0.075, 0.15)),
        ({"PixelSpacing": [0, 0]}, None),
    ],
)
def test_precedence_of_spacings(header, tags, spacing):
    assert header(**tags).spacing == (spacing and pytest.approx(spacing))


def region(code: str, *modifiers: str) -> dict:
    within = {"AnatomicRegionModifierSequence": [make_item(CodeValue=each) for each in modifiers]}
    return {"AnatomicRegionSequence": [make_item(CodeValue=code, **within)]}


@pytest.mark.parametrize(
    ("tags", "side"),
    [
        ({"ImageLaterality": "L"}, "L"),
        ({"Laterality": "R"}, "R"),
        ({"FrameLaterality": "L"}, "L"),
        ({"ImageLaterality": "B"}, None),
        (region("T-04020"), "R"),
        (region("76752008", "7771000"), "L"),
        (region("76752008"), None),
        ({"ViewPosition": "LCC", "ImageLaterality": "R"}, "R"),
    ],
)
def test_laterality(header, tags, side):
    assert header(**tags).laterality == side


def test_what_an_enhanced_image_says_of_its_one_frame(header, tmp_path):
    """Breast projection x-ray images state everything in functional groups."""
    shared = make_item(
        PixelMeasuresSequence=[make_item(PixelSpacing=[0.05, 0.06])],
        FrameAnatomySequence=[make_item(FrameLaterality="L")],
        PixelValueTransformationSequence=[make_item(RescaleSlope=2, RescaleIntercept=-100)],
    )
    frame = make_item(FrameVOILUTSequence=[make_item(WindowCenter=900, WindowWidth=400)])
    found = header(
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[frame],
        NumberOfFrames=1,
    )
    assert (found.spacing, found.laterality) == ((0.05, 0.06), "L")
    image = dicom.read_pixels(tmp_path / "image.dcm")
    header(RescaleSlope=2, RescaleIntercept=-100, WindowCenter=900, WindowWidth=400)
    assert (image == dicom.read_pixels(tmp_path / "image.dcm")).all()


VIEW_CODES = {
    **dict.fromkeys(("R-10242", "399162004"), "CC"),
    **{"399368009": "MLO", "R-10224": "ML", "R-1024A": "XCCL", "399101009": "XCCM"},
    **{"399099002": "LMO", "399188001": "SIO", "G-8310": None},  # the last is a specimen
}
POSITIONS = {"LMLO": ("L", "MLO"), "R CC": ("R", "CC"), "LMO": (None, "LMO"), "LM": (None, "LM")}


def test_view_by_code_and_by_position(header):
    for code, view in VIEW_CODES.items():
        assert header(ViewCodeSequence=[make_item(CodeValue=code)]).view == view, code
    for position, expected in POSITIONS.items():
        found = header(ViewPosition=position)
        assert (found.laterality, found.view) == expected, position


WALLS = {
    "L": (["A", "R"], ["A", "FR"], ["AF", "R"]),
    "R": (["P", "L"], ["PH", "FL"]),
    None: (["L", "F"], "MLO", ""),  # CBIS-DDSM has its view there
}


def test_the_chest_wall_by_the_direction_of_the_rows(header):
    for side, orientations in WALLS.items():
        for words in orientations:
            assert header(PatientOrientation=words, ImageLaterality="R").chest_wall == side, words


def test_raw_images_are_recognised(header):
    assert header(PresentationIntentType="FOR PROCESSING").for_processing
    assert header(SOPClassUID=f"{MAMMOGRAPHY}.1").for_processing and not header().for_processing


CAPTURE = {"SOPClassUID": SecondaryCaptureImageStorage}
RADIOGRAPH = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"}
PHOTOGRAPH = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.5.1"}  # of a fundus
TOMOSYNTHESIS = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3"}
GENERATED = {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]}
NO_MODALITY = {"Modality": None}
IN_BREAST = {"BodyPartExamined": "BREAST"}
MAMMOGRAMS = [
    CAPTURE,
    CAPTURE | NO_MODALITY,
    {"SOPClassUID": f"{SecondaryCaptureImageStorage}.3"},
    RADIOGRAPH | NO_MODALITY | IN_BREAST,
    NO_MODALITY,
    GENERATED,
    TOMOSYNTHESIS | GENERATED,
]
OTHERS = [
    CAPTURE | {"Modality": "CT"},  # a dose page
    CAPTURE | NO_MODALITY | {"BodyPartExamined": "CHEST"},
    PHOTOGRAPH | NO_MODALITY,
    {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"},  # ultrasound
    RADIOGRAPH | NO_MODALITY,
    {"SOPClassUID": CTImageStorage} | NO_MODALITY | IN_BREAST,
]


def test_which_images_are_mammograms(header):
    for tags in MAMMOGRAMS:
        assert header(**tags).rows == 12, tags
    for tags in OTHERS:
        with pytest.raises(ArchiveError, match="is not a mammogram"):
            header(**tags)


@pytest.mark.parametrize(
    "tags",
    [
        TOMOSYNTHESIS,  # one slice
        {"ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ", "RIGHT"]},
        {"TomoClass": "TOMOSYNTHESIS"},
        # older systems write slices as CT, or hide them in a capture's private elements
        {"SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS"]},
        CAPTURE | {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"]},
    ],
)
def test_tomosynthesis_is_named(header, tags):
    with pytest.raises(ArchiveError, match="is not a mammogram but part of a tomosynthesis"):
        header(**tags)
    three = {"NumberOfFrames": 3, "PixelData": STORED.tobytes() * 3}
    with pytest.raises(ArchiveError, match="but a tomosynthesis of 3 images"):
        header(**tags | three)


REFUSED = {
    "modality is not MG": {"Modality": "QUIBBLE", "SOPClassUID": "1.2.3"},
    "has 3 frames": {"NumberOfFrames": 3, "PixelData": STORED.tobytes() * 3},
    "is not a grey image": {"PhotometricInterpretation": "QUIBBLE"},
    "is not a grey image$": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    "no rows or columns": {"Rows": None},
    "no mammogram has 65535 x 65535 pixels": {"Rows": 65535, "Columns": 65535},
    "17 bits stored in 16": {"BitsStored": 17},
    "has no pixel data": {"PixelData": None},
    "the file ends early, 100 of 240 bytes": {"PixelData": STORED.tobytes()[:100]},
    "high bit 15 does not fit 12 stored bits": {"HighBit": 15},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals_name_file_and_reason(tmp_path, reason):
    path = write_file(tmp_path / "image.dcm", **REFUSED[reason])
    for reader in (dicom.read_header, dicom.read_pixels):
        with pytest.raises(ArchiveError, match=rf"image\.dcm: .*{reason}") as caught:
            reader(path)
        assert "\n" not in str(caught.value) and "QUIBBLE" not in str(caught.value)

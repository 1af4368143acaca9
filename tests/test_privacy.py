"""No patient data leaves: what is planted in the headers of an archive is searched for in
everything tfmammo puts out.
"""

import logging
import pickle
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.archives.writers import inbreast as writer
from tests.small_mammograms import COLS, ROWS, make_mammogram, ramp
from tfmammo import config as configuration
from tfmammo.archives import dicom, inbreast
from tfmammo.config import DataConfig, TrackingConfig
from tfmammo.data import datasets
from tfmammo.errors import ArchiveError
from tfmammo.mammogram import Lesion, Mammogram, Skipped
from tfmammo.models.can import CAN
from tfmammo.training import loop, script

NAME = "QUIBBLE^ZEPHYRINE"
PLANTED = {
    "PatientName": NAME,
    "PatientID": "PIDXW77310",
    "PatientBirthDate": "19430217",
    "OtherPatientIDs": ["OPIDKJ5512", "OPIDKJ5513"],
    "PatientAddress": "9 WOBBLETHORPE LANE",
    "PatientComments": "niece of FITZHUGH",
    "ReferringPhysicianName": "GRUMBOLT^OTTOLINE",
    "InstitutionName": "ST SNODGRASS INFIRMARY",
    "StudyDate": "20091123",
    "AccessionNumber": "ACCVN99344",
    "StudyDescription": "for DR THISTLEWAITE",
    "SeriesDescription": "left of MRS PUMPHREY",
    "StationName": "SNODGRASSMG1",
}
PRIVATE = ("BLATHERWICK MEDICAL", "WIGGLESBURY", "HONEYCHURCH^PRIVATA")
# Every word of them that could name somebody, and every number.
SECRETS = {
    word
    for text in (*PLANTED.values(), *PRIVATE)
    for part in np.atleast_1d(text)
    for word in part.replace("^", " ").split()
}
SECRETS = {word for word in SECRETS if len(word) > 5 and word not in ("INFIRMARY", "MEDICAL")}


def find_planted(content: str | bytes) -> set[str]:
    """The planted words in a text or a file's bytes, in any case, in UTF-8 and UTF-16."""
    raw = content.encode(errors="replace") if isinstance(content, str) else content
    raw = raw.upper()
    return {word for word in SECRETS if word.encode() in raw or word.encode("utf-16-le") in raw}


def mammogram(number: int) -> Mammogram:
    outline = np.float32([[10, 12], [10, 30], [32, 30], [32, 12]]) + number % 3
    return make_mammogram(
        number,
        ramp(number / 20),
        [Lesion.from_outline("mass", outline, ROWS, COLS)],
        patient_id=f"aa{number}",
        laterality="LR"[number % 2],
        birads="4b",
        density="2",
        spacing=(0.07, 0.07),
    )


def plant(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    for key, value in PLANTED.items():
        setattr(dataset, key, value)
    maker, *texts = PRIVATE
    block = dataset.private_block(0x0029, maker, create=True)
    block.add_new(0x01, "LO", texts[0])
    item = Dataset()
    item.PatientName = texts[1]
    block.add_new(0x02, "SQ", [item])
    behind = dataset.private_block(0x7FE3, maker, create=True)
    behind.add_new(0x01, "UT", texts[1])
    dataset.save_as(path)


@pytest.fixture
def archive(tmp_path) -> Path:
    """Eight patients in INbreast's form, their headers full of what hospitals write there."""
    for path in writer.write(map(mammogram, range(8)), tmp_path / "inbreast"):
        plant(path)
    return tmp_path / "inbreast"


def files(archive: Path) -> list[Path]:
    return sorted((archive / "AllDICOMs").iterdir())


@pytest.fixture
def heard(caplog) -> Iterator[list[str]]:
    """All that is logged at any level by any logger, and all that is warned of."""
    texts: list[str] = []
    caplog.set_level(logging.DEBUG)
    before = {name: logging.getLogger(name).level for name in ("pydicom", "tfmammo")}
    for name in before:
        logging.getLogger(name).setLevel(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        texts += [str(warning.message) for warning in caught]
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
    texts += [caplog.text, *(record.getMessage() for record in caplog.records)]
    assert not find_planted("\n".join(texts))


def test_records_hold_nothing_of_what_is_in_the_files(archive, heard):
    assert len(SECRETS) == 20
    for path in files(archive):
        assert find_planted(path.read_bytes()) == SECRETS
    assert find_planted(NAME.title().encode("utf-16-le")) == {"QUIBBLE", "ZEPHYRINE"}
    skipped = Skipped()
    records = inbreast.read(archive, skipped)
    assert all(record.pixels().any() for record in records)
    assert len(records) == 8 and len({record.patient_id for record in records}) == 8
    assert not find_planted(repr(records) + repr(skipped))
    assert not find_planted(pickle.dumps((records, [record.lesions for record in records])))


def test_the_headers_other_facts_hold_nothing_of_it(archive):
    header = dicom.read_header(files(archive)[0])
    # which no record has
    assert find_planted(repr(header)) == {"PUMPHREY"} == find_planted(header.series_description)


def complaint(path: Path) -> str:
    """What reading says: the sentence, and the traceback that a caller may log.

    Empty where the file can be read.
    """
    said = ""
    for reader in (dicom.read_header, dicom.read_pixels):
        try:
            reader(path)
        except ArchiveError as error:
            said += f"{error}\n{error!r}\n{''.join(traceback.format_exception(error))}"
    return said


NAMES = (
    """
    Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel
    NumberOfFrames RescaleSlope RescaleIntercept WindowCenter WindowWidth PixelPaddingValue
    PixelPaddingRangeLimit PixelSpacing ImagerPixelSpacing
    EstimatedRadiographicMagnificationFactor NominalScannedPixelSpacing
    """,
    """
    Modality PhotometricInterpretation VOILUTFunction ViewPosition ImageLaterality
    PresentationIntentType
    """,
    "PatientBirthDate StudyTime PatientAge PatientSize StudyInstanceUID InstanceNumber",
)
NUMBERS, WORDS, UNUSED = map(str.split, NAMES)
NEEDED = {  # so that each of the values is looked at
    "WindowCenter": ("DS", "5"),
    "WindowWidth": ("DS", "5"),
    "PixelPaddingValue": ("SS", 5),
    "RescaleSlope": ("DS", "1"),
    "RescaleIntercept": ("DS", "0"),
    "ImagerPixelSpacing": ("DS", ["1", "1"]),
}


def misplace(path: Path, syntax, **values: tuple[str, str]) -> None:
    """Write elements as (type, text), whatever type they should have."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    for key, (kind, text) in values.items():
        dataset.add_new(key, kind, text)
    dataset.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("key", [*NUMBERS, *WORDS])
def test_a_name_where_another_value_belongs_is_not_quoted(archive, heard, key, syntax):
    path = files(archive)[0]
    misplace(path, syntax, **NEEDED)
    assert complaint(path) == ""
    misplace(path, syntax, **{key: ("LO", NAME)})
    said = complaint(path)
    assert not find_planted(said)
    # the last is not asked for, as ImagerPixelSpacing is there
    if syntax == ExplicitVRLittleEndian and key in NUMBERS[:-1]:
        assert f"{path}: its {key} is no number" in said


USED = ["WindowCenter", "RescaleSlope", "PixelSpacing", "NumberOfFrames"]


@pytest.mark.parametrize("key", UNUSED + USED)
def test_malformed_values_are_not_quoted(archive, heard, key):
    path = files(archive)[0]
    misplace(path, ExplicitVRLittleEndian, **{key: ("LO", NAME)})
    kind = pydicom.datadict.dictionary_VR(key).encode()
    value = b"\x12\0" + NAME.encode()
    path.write_bytes(path.read_bytes().replace(b"LO" + value, kind + value))
    said = complaint(path)
    assert not find_planted(said)
    assert f"{path}: its {key} is no number" in said if key in USED else said == ""


def test_damaged_files_quote_nothing(archive, heard):
    """Cut anywhere, with any byte of the header changed, with lengths that let one value run into
    the next.
    """
    path = files(archive)[0]
    whole = path.read_bytes()
    end = whole.index(b"\xe0\x7f\x10\x00")
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        content = bytearray(whole)
        for at in generator.integers(132, end + 12, generator.integers(1, 4)):
            content[at] = generator.integers(256)
        is_cut = generator.random() < 0.3
        path.write_bytes(content[: generator.integers(132, len(whole))] if is_cut else content)
        said = complaint(path)
        assert not find_planted(said)
        outcomes.add(bool(said))
    assert outcomes == {True, False}


def test_skips_and_their_log_lines_hold_nothing_of_it(archive, heard):
    first, second, third, *_ = files(archive)
    misplace(first, ExplicitVRLittleEndian, Modality=("CS", "PIDXW77310"))
    misplace(second, ExplicitVRLittleEndian, Rows=("LO", NAME))
    third.write_bytes(third.read_bytes()[:900])
    skipped = Skipped()
    assert len(inbreast.read(archive, skipped)) == 5
    assert len(skipped) == 3
    assert not find_planted(repr(skipped))


@pytest.mark.long
def test_a_training_leaves_nothing_of_it(archive, tmp_path, tiny_can, heard, monkeypatch, capfd):
    misplace(files(archive)[0], ExplicitVRLittleEndian, Rows=("LO", NAME))
    output = tmp_path / "out"
    output.mkdir()
    monkeypatch.chdir(output)
    tracking = TrackingConfig(uri=f"sqlite:///{output / 'mlflow.db'}", system_metrics=False)
    data = DataConfig(name="inbreast", root=archive, size=32)
    experiment = tiny_can(steps=2, steps_per_loop=1)
    experiment = experiment.model_copy(update={"data": data, "tracking": tracking})
    patches, held_out = datasets.open_subsets(experiment.data)
    assert len(patches) + len(held_out) == 7
    parts = experiment, patches, held_out, output / "run", script.compute_validation_metrics
    loop.Training(lambda: CAN(experiment.model, 32), *parts, monitor="dice").fit()
    script.print_summary(experiment, {"dice": 0.5}, held_out, output / "run")
    written = [path for path in output.rglob("*") if path.is_file()]
    assert {".db", ".png", ".json", ".pb"} <= {path.suffix for path in written}
    for path in written:
        assert not find_planted(path.read_bytes()), path
        assert not find_planted(str(path.relative_to(output)))
    assert not find_planted(pickle.dumps((patches, held_out)))
    assert not find_planted(configuration.dump(experiment))
    assert not find_planted("".join(capfd.readouterr()))

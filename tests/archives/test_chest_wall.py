"""PatientOrientation in the headers of archives whose names or tables give the laterality."""

import pydicom
import pytest

from tests.archives.writers import inbreast as inbreast_writer
from tests.archives.writers import vindr as vindr_writer
from tests.small_mammograms import make_mammogram, ramp
from tfmammo.archives import inbreast, vindr
from tfmammo.mammogram import Skipped


@pytest.mark.parametrize(
    ("reader", "writer"),
    [(inbreast, inbreast_writer), (vindr, vindr_writer)],
    ids=["inbreast", "vindr"],
)
@pytest.mark.parametrize(
    ("words", "wall", "notes"), [(["A", "R"], "L", 0), (["P", "L"], "R", 1), (None, None, 0)]
)
def test_the_chest_wall_is_the_headers(reader, writer, words, wall, notes, tmp_path):
    original = make_mammogram(1, ramp(0.1), birads="1", density="2", spacing=(0.07, 0.07))
    (path,) = writer.write([original], tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.PatientOrientation = words
    dataset.save_as(path)
    skipped = Skipped()
    (record,) = reader.read(tmp_path, skipped)
    assert (record.laterality, record.chest_wall, len(skipped)) == ("L", wall, notes)
    assert record.wall_side == (wall or "L")

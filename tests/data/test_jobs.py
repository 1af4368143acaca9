"""Parts of long jobs: finished ones are kept, missing ones are an error."""

from dataclasses import replace

import pytest

from tests.small_mammograms import make_noisy, make_rectangle, refuse
from tfmammo.data import jobs, runners
from tfmammo.data.runners import HERE
from tfmammo.errors import DataError
from tfmammo.mammogram import Lost


def test_finished_parts_are_kept_and_missing_ones_an_error(tmp_path, monkeypatch):
    names = []

    def make(path):
        names.append(path.name)
        path.write_text("whole")

    def complete():
        names.clear()
        parts = [tmp_path / "b", tmp_path / "a"]
        return jobs.complete_parts(parts, make, read, lambda path: path, HERE)

    def read(path):
        return path.read_text() if path.is_file() else None

    assert complete() == ["whole"] * 2 and names == ["b", "a"]
    assert complete() == ["whole"] * 2 and names == []
    (tmp_path / "a").unlink()
    monkeypatch.setattr(runners, "run", lambda parts, make, runner: None)
    with pytest.raises(DataError, match="/a: "):
        complete()


def test_what_an_archive_states_decides_its_fingerprint():
    lesion = make_rectangle(10, 20, 30, 40)
    mammogram = make_noisy(lesion, name="a", read=refuse)
    other = make_noisy(name="b", read=refuse)
    texts = ("patient_id", "image_id", "laterality", "view", "pathology", "official_split")
    changes = dict.fromkeys(texts, "another") | {"rows": 1, "cols": 1, "bits": 12}
    changes |= {"spacing": (1.0, 1.0), "chest_wall": "R", "lost": (Lost("mass"),)}
    variants = [replace(mammogram, **{name: value}) for name, value in changes.items()]
    for changed in (
        replace(lesion, pathology="malignant"),
        replace(lesion, margin="spiculated"),
        make_rectangle(10, 20, 30, 41),
        replace(lesion, outlines=(lesion.outlines[0] + 0.25,)),
    ):
        variants.append(replace(mammogram, lesions=(changed,)))
    archives = [[mammogram, other], [other, mammogram], [mammogram]]
    archives += [[variant, other] for variant in variants]
    found = {jobs.fingerprint(archive) for archive in archives}
    assert len(found) == len(archives)
    assert jobs.fingerprint([replace(mammogram, read=None), other]) in found

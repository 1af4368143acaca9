"""Building records of a tiny INbreast tree: contents, resumption, failures, refusals."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from tests.archives.writers import inbreast as writer
from tests.commands import run_module
from tests.facts import read_failures
from tests.small_mammograms import make_mammogram
from tfmammo.archives import inbreast
from tfmammo.archives.files import make_pseudonym
from tfmammo.config import AddedConfig, DataConfig, dump
from tfmammo.data import build as module
from tfmammo.data import card
from tfmammo.data.build import BuildConfig, ShardConfig, build
from tfmammo.data.extraction import make_patches
from tfmammo.data.patches import TEXTS
from tfmammo.data.runners import Runner
from tfmammo.data.tfrecord import Records, read_manifest
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, Skipped

ROWS = 60
COLS = 44
MASS = np.float32([[20, 12], [20, 28], [34, 28], [34, 12]])


def draw_mammogram(number, kind):
    lesions = [Lesion.from_outline(kind, MASS + number % 3, ROWS, COLS)] if kind else []
    image = np.random.default_rng(number).random((ROWS, COLS, 1)).astype(np.float32)
    return make_mammogram(
        number,
        image,
        lesions,
        patient_id=f"a{number // 2}",
        laterality="LR"[number % 2],
        view=("CC", "MLO")[number // 2 % 2],
        spacing=(0.1, 0.1),
        birads="4b" if kind else "1",
        density="2",
    )


@pytest.fixture
def archive(tmp_path):
    """Seven mammograms: the fourth without findings, the sixth with calcifications alone."""
    kinds = ("mass", "mass", "mass", None, "mass", "calcification", "mass")
    mammograms = [draw_mammogram(number, kind) for number, kind in enumerate(kinds)]
    writer.write(mammograms, tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def config(archive):
    data = DataConfig(name="inbreast", root=archive, size=16)
    return BuildConfig(name="tiny", data=data, build=ShardConfig(shard_mammograms=2))


@pytest.fixture
def built(config, tmp_path):
    build(config, tmp_path / "out")
    return tmp_path / "out"


def change(config, **data):
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def find_dicom(archive: Path, number: int) -> Path:
    (path,) = (archive / "AllDICOMs").glob(f"{20_000_001 + number}_*.dcm")
    return path


def damage(path: Path) -> None:
    """A file whose header is whole and whose compressed pixels are not."""
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    path.write_bytes(path.read_bytes()[:-400] + bytes(400))


def read_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's contents and time of writing."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def read_contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in read_files(folder).items()}


@pytest.mark.parametrize("patches", ["lesion", "offset"])
def test_records_are_the_patches_of_the_archive(patches, config, tmp_path):
    sampling = config.data.sampling.model_copy(update={"count": 23, "offset": 5})
    chosen = change(config, patches=patches, sampling=sampling)
    build(chosen, tmp_path / "out")
    expected = make_patches(inbreast.read(config.data.root), chosen.data, Skipped())
    loaded = Records.open(tmp_path / "out").load()
    assert len(loaded) == {"lesion": 5, "offset": 23}[patches]
    np.testing.assert_allclose(loaded.images, expected.images, atol=0.5 / 65535 + 1e-7)
    np.testing.assert_array_equal(loaded.masks, expected.masks)
    for name in TEXTS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name))


def test_the_folder_and_its_manifest(built, config):
    names = {"build.json", "manifest.json", "failures.csv", "README.md", ".lock"}
    for number in range(3):
        names |= {f"shard-{number:05d}-of-00003.{kind}" for kind in ("tfrecord", "json")}
    assert set(read_contents(built)) == names
    manifest = read_manifest(built)
    assert [shard.count for shard in manifest.shards] == [2, 2, 1]
    for shard in manifest.shards:
        content = (built / shard.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.sha256 and len(content) == shard.bytes
    assert manifest.columns["views"] == ("CC", "CC", "MLO", "CC", "MLO")
    assert manifest.columns["lateralities"] == ("L", "R", "L", "L", "L")
    ids = tuple(str(20_000_001 + number) for number in (0, 1, 2, 4, 6))
    assert manifest.columns["image_ids"] == ids
    about = manifest.identity["archive"]
    assert about["name"] == "inbreast" and about["mammograms"] == 7
    assert read_failures(built) == {}
    root = str(config.data.root).encode()
    assert not any(root in content for content in read_contents(built).values())
    text = (built / "README.md").read_text(encoding="utf-8")
    assert manifest.fingerprint in text and card.LICENCES["inbreast"] in text
    counts = (("patches", 5), ("patients", 4), ("mammograms in the archive", 7), ("L", 4))
    assert {f"| {name} | {count} |" for name, count in counts} <= set(text.splitlines())


def test_failures_hold_no_formulas():
    skipped = Skipped({"=1+1": "a, b\n@c", "+x": "-1", "plain.dcm": 'says "no"'})
    assert skipped.to_csv() == 'file,reason\n\'=1+1,"a, b @c"\n\'+x,\'-1\nplain.dcm,"says ""no"""\n'


def test_a_build_goes_on_where_it_was_stopped(built, config):
    before = read_files(built)
    for name in ("manifest.json", "README.md", "failures.csv", "shard-00001-of-00003.json"):
        (built / name).unlink()
    cut = built / "shard-00002-of-00003.tfrecord"
    cut.write_bytes(cut.read_bytes()[:50])
    (built / ".shard-00001-of-00003.tfrecord.abc.part").write_bytes(b"half of it")
    build(config, built)
    assert read_contents(built) == {name: content for name, (content, _) in before.items()}
    assert list_new_shards(built, before) == {"00001", "00002"}, "whole shards are left alone"


def test_a_worker_that_fails_leaves_no_half_shard(config, tmp_path, monkeypatch):
    encode = module.encode
    calls = []
    out = tmp_path / "out"

    def fail(patch):
        calls.append(patch.id)
        if len(calls) == 4:
            raise OSError("No space left on device")
        return encode(patch)

    monkeypatch.setattr(module, "encode", fail)
    with pytest.raises(DataError, match="No space left") as caught:
        build(config, out)
    assert "\n" not in str(caught.value)
    for path in out.glob("shard-*.tfrecord"):
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sidecar["shard"]["sha256"]
    assert not list(out.glob("*.part")) and not (out / "manifest.json").exists()
    monkeypatch.undo()
    build(config, out)
    build(config, tmp_path / "whole")
    assert read_contents(out) == read_contents(tmp_path / "whole")


def test_a_bad_file_becomes_a_failure(config, archive, tmp_path):
    out = tmp_path / "out"
    damaged = find_dicom(archive, 1)
    whole = damaged.read_bytes()
    damage(damaged)
    find_dicom(archive, 4).write_bytes(b"no DICOM")
    manifest = build(config, out)
    assert manifest.columns["image_ids"] == ("20000001", "20000003", "20000007")
    letters = read_failures(out)
    bad = make_pseudonym(find_dicom(archive, 4).relative_to(archive).as_posix())
    assert set(letters) == {"20000002", bad} and "is not a DICOM file" in letters[bad]
    text = "".join(path.read_text() for path in (*out.glob("*.json"), out / "failures.csv"))
    for name in (str(archive), find_dicom(archive, 2).name, find_dicom(archive, 4).name):
        assert name not in text
    assert "| 2 |" in (out / "README.md").read_text(encoding="utf-8")
    # a corrected file costs its own shard alone
    before = read_files(out)
    damaged.write_bytes(whole)
    build(config, out)
    assert list_new_shards(out, before) == {"00000"} and set(read_failures(out)) == {bad}


def list_new_shards(folder, before):
    after = read_files(folder)
    return {name[6:11] for name in before if "shard" in name and before[name] != after[name]}


def fail_at(image_id, error, monkeypatch, first=False):
    """Let the patches of one mammogram fail: the first one, or the one after it."""
    extract_patches = module.extract_patches

    def fail(mammogram, *rest):
        is_bad = mammogram.image_id == image_id
        if not (is_bad and first):
            yield from extract_patches(mammogram, *rest)
        if is_bad:
            raise error

    monkeypatch.setattr(module, "extract_patches", fail)


def test_failures_are_tried_again_on_demand(config, tmp_path, monkeypatch):
    out = tmp_path / "out"
    fail_at("20000002", OSError("no memory"), monkeypatch, first=True)
    build(config, out)
    monkeypatch.undo()
    before = read_files(out)
    assert len(read_failures(out)) == 1
    build(config, out)
    assert read_files(out) == before
    build(config, out, retry=True)
    assert list_new_shards(out, before) == {"00000"} and read_failures(out) == {}


ERRORS = [OSError, ValueError, cv2.error]
BUGS = [TypeError, MemoryError]


@pytest.mark.parametrize("kind", [*ERRORS, *BUGS])
def test_a_file_that_breaks_its_decoder_is_a_failure_and_a_bug_stops_the_build(
    kind, config, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    fail_at("20000003", kind("disk gone"), monkeypatch)
    said = f"{kind.__name__}: disk gone"
    if kind in ERRORS:
        assert build(config, out).count == 5
        assert read_failures(out) == {"20000003": said.replace("cv2.", "")}
        return
    with pytest.raises(DataError, match=rf"the work stopped .*20000003: {said}") as caught:
        build(config, out)
    assert "\n" not in str(caught.value)
    assert not (out / "manifest.json").exists() and not list(out.glob("*.part"))


def test_another_config_is_refused_by_its_keys(built, config, tmp_path):
    before = read_files(built)
    shards = config.model_copy(update={"build": ShardConfig(shard_mammograms=3)})
    for other, folder, key in (
        (change(config, size=32, context=2.0), built, "data.context"),
        (shards, built, "build.shard_mammograms"),
        (change(config, added=AddedConfig(copies=2)), tmp_path / "new", "data.added"),
    ):
        with pytest.raises(ConfigError, match=key):
            build(other, folder)
    assert read_files(built) == before and not (tmp_path / "new").exists()


def test_where_no_patch_is_left(config, archive, tmp_path):
    for number in range(7):
        damage(find_dicom(archive, number))
    with pytest.raises(DataError, match="20000001"):
        build(config, tmp_path / "out")
    assert len(read_failures(tmp_path / "out")) == 5  # the two without masses are not opened


@pytest.mark.slow
def test_apache_beam_writes_what_this_process_writes(built, config, tmp_path):
    pytest.importorskip("apache_beam")
    build(config, tmp_path / "beam", Runner(beam="DirectRunner"))
    assert read_contents(tmp_path / "beam") == read_contents(built)


@pytest.mark.long
def test_two_processes_write_what_one_writes(built, config, tmp_path):
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    arguments = ("--config", tmp_path / "config.yaml", "--output", tmp_path / "two")
    done = run_module("tfmammo.data.build", *arguments, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert read_contents(tmp_path / "two") == read_contents(built)
    assert "5 patches of 4 patients, 0 failures" in done.stderr

"""Building records of a tiny INbreast tree: contents, resumption,
dead letters, refusals.
"""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from tests.archives.writers import inbreast as writer
from tests.commands import run_module_here
from tests.small_mammograms import make_mammogram
from tfmammo.archives import inbreast
from tfmammo.archives.files import make_pseudonym
from tfmammo.config import AddedConfig, DataConfig, dump, parse
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


def noise(seed):
    return np.random.default_rng(seed).random((ROWS, COLS, 1)).astype(np.float32)


def mammogram(number, kind="mass"):
    return make_mammogram(
        number,
        noise(number),
        [Lesion.from_outline(kind, MASS + number % 3, ROWS, COLS)] if kind else [],
        patient_id=f"a{number // 2}",
        laterality="LR"[number % 2],
        view=("CC", "MLO")[number // 2 % 2],
        spacing=(0.1, 0.1),
        birads="4b" if kind else "1",
        density="2",
    )


@pytest.fixture
def archive(tmp_path):
    """Seven mammograms in INbreast's form: the fourth without findings, the sixth with
    calcifications alone.
    """
    kinds = ("mass", "mass", "mass", None, "mass", "calcification", "mass")
    writer.write(
        [mammogram(number, kind) for number, kind in enumerate(kinds)], tmp_path / "archive"
    )
    return tmp_path / "archive"


@pytest.fixture
def config(archive):
    return BuildConfig(
        name="tiny",
        data=DataConfig(name="inbreast", root=archive, size=16),
        build=ShardConfig(shard_mammograms=2),
    )


def dicom_of(archive: Path, number: int) -> Path:
    (path,) = (archive / "AllDICOMs").glob(f"{20_000_001 + number}_*.dcm")
    return path


def damage(path: Path) -> None:
    """A file whose header is whole and whose compressed pixels are not."""
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    content = path.read_bytes()
    path.write_bytes(content[:-400] + bytes(400))


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's contents and time of writing."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in files(folder).items()}


def dead_letters(folder: Path) -> dict[str, str]:
    with (folder / "dead_letters.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def built(config, tmp_path):
    build(config, tmp_path / "out")
    return tmp_path / "out"


def test_records_are_the_patches_of_the_archive(built, config):
    expected = make_patches(inbreast.read(config.data.root), config.data, Skipped())
    loaded = Records.open(built).load()
    np.testing.assert_allclose(loaded.images, expected.images, atol=0.5 / 65535 + 1e-7)
    np.testing.assert_array_equal(loaded.masks, expected.masks)
    for name in TEXTS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name))
    assert len(expected) == 5


def test_the_folder_and_its_manifest(built, config):
    shards = [f"shard-{number:05d}-of-00003" for number in range(3)]
    expected = {"build.json", "manifest.json", "dead_letters.csv", "README.md", ".lock"}
    assert set(contents(built)) == expected | {
        f"{name}.{kind}" for name in shards for kind in ("tfrecord", "json")
    }
    manifest = read_manifest(built)
    assert [shard.count for shard in manifest.shards] == [2, 2, 1]
    for shard in manifest.shards:
        content = (built / shard.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.sha256 and len(content) == shard.bytes
    images = np.rint(Records.open(built).load().images * 65535).astype(int)
    assert list(manifest.histogram) == np.histogram(images, bins=32, range=(0, 65536))[0].tolist()
    assert manifest.columns["views"] == ("CC", "CC", "MLO", "CC", "MLO")
    assert manifest.columns["lateralities"] == ("L", "R", "L", "L", "L")
    assert manifest.columns["image_ids"] == tuple(
        str(20_000_001 + number) for number in (0, 1, 2, 4, 6)
    )
    assert (
        manifest.identity["archive"]["name"] == "inbreast"
        and manifest.identity["archive"]["mammograms"] == 7
    )
    assert dead_letters(built) == {}
    assert not any(
        str(config.data.root).encode() in content for content in contents(built).values()
    )


def test_a_second_build_changes_nothing(built, config, tmp_path):
    before = files(built)
    build(config, built)
    assert files(built) == before
    build(config, tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == contents(built)


def test_a_build_goes_on_where_it_was_stopped(built, config):
    before = files(built)
    for name in ("manifest.json", "README.md", "dead_letters.csv", "shard-00001-of-00003.json"):
        (built / name).unlink()
    (built / "shard-00000-of-00003.tfrecord").unlink()
    cut = built / "shard-00002-of-00003.tfrecord"
    cut.write_bytes(cut.read_bytes()[:50])
    (built / ".shard-00001-of-00003.tfrecord.abc.part").write_bytes(b"half of it")
    build(config, built)
    assert contents(built) == {name: content for name, (content, _) in before.items()}


def test_whole_shards_are_left_alone(built, config):
    before = files(built)
    (built / "shard-00001-of-00003.json").unlink()
    build(config, built)
    after = files(built)
    assert {name for name in before if before[name] != after[name]} == {
        f"shard-00001-of-00003.{kind}" for kind in ("json", "tfrecord")
    }


def test_a_worker_that_fails_leaves_no_half_shard(config, tmp_path, monkeypatch):
    encode = module.encode
    calls = []

    def failing(patch):
        calls.append(patch.id)
        if len(calls) == 4:
            raise OSError("No space left on device")
        return encode(patch)

    monkeypatch.setattr(module, "encode", failing)
    with pytest.raises(DataError, match="No space left") as caught:
        build(config, tmp_path / "out")
    assert "\n" not in str(caught.value)
    for path in (tmp_path / "out").glob("shard-*.tfrecord"):
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sidecar["shard"]["sha256"]
    assert (
        not list((tmp_path / "out").glob("*.part"))
        and not (tmp_path / "out" / "manifest.json").exists()
    )
    monkeypatch.undo()
    build(config, tmp_path / "out")
    build(config, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_bad_file_becomes_a_dead_letter(config, archive, tmp_path):
    damage(dicom_of(archive, 1))
    dicom_of(archive, 4).write_bytes(b"no DICOM")
    manifest = build(config, tmp_path / "out")
    assert manifest.columns["image_ids"] == ("20000001", "20000003", "20000007")
    letters = dead_letters(tmp_path / "out")
    bad = make_pseudonym(dicom_of(archive, 4).relative_to(archive).as_posix())
    assert set(letters) == {"20000002", bad}
    assert "is not a DICOM file" in letters[bad]
    told = (tmp_path / "out" / "dead_letters.csv").read_text() + "".join(
        path.read_text() for path in (tmp_path / "out").glob("*.json")
    )
    assert all(
        name not in told
        for name in (str(archive), dicom_of(archive, 2).name, dicom_of(archive, 4).name)
    )
    assert "| 2 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# what a build leaves alone that makes the first of three shards again
UNTOUCHED = {
    ".lock",
    "build.json",
    *(f"shard-0000{number}-of-00003.{kind}" for number in (1, 2) for kind in ("json", "tfrecord")),
}


def test_a_corrected_file_costs_its_own_shard_alone(config, archive, tmp_path):
    path = dicom_of(archive, 1)
    whole = path.read_bytes()
    damage(path)
    out = tmp_path / "out"
    build(config, out)
    before = files(out)
    assert len(dead_letters(out)) == 1
    path.write_bytes(whole)
    build(config, out)
    after = files(out)
    assert {name for name in before if before[name] == after[name]} == UNTOUCHED
    assert read_manifest(out).count == 5 and dead_letters(out) == {}


def test_dead_letters_are_tried_again_on_demand(config, tmp_path, monkeypatch):
    extract_patches = module.extract_patches

    def lack_memory(mammogram, *rest):
        if mammogram.image_id == "20000002":
            raise OSError("no memory")
        return extract_patches(mammogram, *rest)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "extract_patches", lack_memory)
        build(config, out)
    before = files(out)
    assert len(dead_letters(out)) == 1
    build(config, out)
    assert files(out) == before
    build(config, out, retry=True)
    after = files(out)
    assert {name for name in before if before[name] == after[name]} == UNTOUCHED
    assert read_manifest(out).count == 5 and dead_letters(out) == {}


def failing_at(image_id, error, monkeypatch):
    """Let the patches of one mammogram fail: the first is there, the next is not."""
    extract_patches = module.extract_patches

    def failing(mammogram, *rest):
        yield from extract_patches(mammogram, *rest)
        if mammogram.image_id == image_id:
            raise error

    monkeypatch.setattr(module, "extract_patches", failing)


@pytest.mark.parametrize(
    "error", [OSError("disk gone"), ValueError("disk gone"), cv2.error("disk gone")]
)
def test_what_a_file_does_to_its_decoder_becomes_a_dead_letter(
    error, config, tmp_path, monkeypatch
):
    failing_at("20000004", error, monkeypatch)
    failing_at("20000003", error, monkeypatch)
    assert build(config, tmp_path / "out").count == 5
    assert dead_letters(tmp_path / "out") == {"20000003": f"{type(error).__name__}: disk gone"}


@pytest.mark.parametrize("error", [TypeError("not ours"), MemoryError("no memory")])
def test_a_fault_of_our_own_stops_the_build(error, config, tmp_path, monkeypatch):
    failing_at("20000003", error, monkeypatch)
    with pytest.raises(
        DataError, match=rf"the work stopped .*20000003: {type(error).__name__}: {error}"
    ) as caught:
        build(config, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists() and not list(
        (tmp_path / "out").glob("*.part")
    )


def test_another_config_is_refused_by_its_keys(built, config):
    before = files(built)
    other = config.model_copy(
        update={"data": config.data.model_copy(update={"size": 32, "context": 2.0})}
    )
    with pytest.raises(ConfigError, match="data.context"):
        build(other, built)
    with pytest.raises(ConfigError, match="build.shard_mammograms"):
        build(config.model_copy(update={"build": ShardConfig(shard_mammograms=3)}), built)
    assert files(built) == before


def test_records_hold_nothing_that_joins_one_side_of_a_split(config, tmp_path):
    added = config.model_copy(
        update={"data": config.data.model_copy(update={"added": AddedConfig(copies=2)})}
    )
    with pytest.raises(ConfigError, match="data.added"):
        build(added, tmp_path / "new")


def test_another_archive_is_refused_and_a_moved_one_is_not(built, config, archive, tmp_path):
    before = files(built)
    moved = archive.rename(tmp_path / "moved")
    same = config.model_copy(
        update={"data": config.data.model_copy(update={"root": moved, "fold": 2, "augment": False})}
    )
    build(same, built)
    assert files(built) == before
    # other outlines
    (moved / "AllXML" / "20000001.xml").write_bytes(
        (moved / "AllXML" / "20000002.xml").read_bytes()
    )
    with pytest.raises(ConfigError, match="content of the archive"):
        build(same, built)
    dicom_of(moved, 6).unlink()
    with pytest.raises(ConfigError, match="content of the archive"):
        build(same, built)


def test_folders_of_others_are_left_alone(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        build(config, tmp_path / "mine")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"file: can't be used"):
        build(config, tmp_path / "file")
    assert contents(tmp_path / "mine") == {"README.md": b"mine"}


def test_where_no_patch_is_left(config, archive, tmp_path):
    for number in range(7):
        damage(dicom_of(archive, number))
    with pytest.raises(DataError, match="20000001"):
        build(config, tmp_path / "out")
    assert len(dead_letters(tmp_path / "out")) == 5  # the two without masses are not opened


def test_patches_of_random_place(config, tmp_path):
    data = config.data.model_copy(
        update={
            "patches": "offset",
            "sampling": config.data.sampling.model_copy(update={"count": 23, "offset": 5}),
        }
    )
    with_offsets = config.model_copy(update={"data": data})
    manifest = build(with_offsets, tmp_path / "out")
    expected = make_patches(inbreast.read(data.root), data, Skipped())
    assert manifest.columns["ids"] == tuple(expected.ids.tolist()) and manifest.count == 23
    np.testing.assert_allclose(
        Records.open(tmp_path / "out").load().images, expected.images, atol=1e-5
    )


def test_the_card(built):
    text = (built / "README.md").read_text(encoding="utf-8")
    assert (
        text.startswith("# tiny: lesion patches of inbreast\n")
        and read_manifest(built).fingerprint in text
    )
    for line in (
        "| patches | 5 |",
        "| patients | 4 |",
        "| mammograms | 5 |",
        "| mammograms in the archive | 7 |",
        "| mass | 5 |",
        "| L | 4 |",
    ):
        assert line in text.splitlines()
    assert "on request" in text and card.LICENCES["inbreast"] in text
    shares = [
        float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("0.") and "%" in line
    ]
    assert len(shares) == 32 and sum(shares) == pytest.approx(100, abs=0.2)


def test_dead_letters_hold_no_formulas():
    text = card.format_dead_letters({"=1+1": "a, b\n@c", "+x": "-1", "plain.dcm": 'says "no"'})
    assert text == 'file,reason\n\'=1+1,"a, b @c"\n\'+x,\'-1\nplain.dcm,"says ""no"""\n'


def test_the_repository_config(repository):
    shipped = parse(BuildConfig, repository / "configs" / "build.yaml", ["data.size=64"])
    assert shipped.data.size == 64 and shipped.build.shard_mammograms == 16
    with pytest.raises(ConfigError, match=r"build.shards: unknown key"):
        parse(BuildConfig, repository / "configs" / "build.yaml", ["build.shards=3"])


def run(*arguments, repository):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(repository), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    command = [sys.executable, "-m", "tfmammo.data.build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.long
def test_a_second_build_in_one_folder_is_refused_and_the_first_one_ends_well(tmp_path, repository):
    """The first is held while its shard is half-written, so that the second surely meets it."""
    tiny = BuildConfig(
        name="tiny", data=DataConfig(size=16, phantoms=12), build=ShardConfig(shard_mammograms=12)
    )
    (tmp_path / "config.yaml").write_text(dump(tiny), encoding="utf-8")
    arguments = ["--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "tfmammo.data.build", *arguments]
    with subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE, text=True) as first:
        try:
            while not list((tmp_path / "out").glob(".shard*.part")):
                assert first.poll() is None, first.communicate()[1]
                time.sleep(0.05)
            first.send_signal(signal.SIGSTOP)
            second = run(*arguments, repository=repository)
            first.send_signal(signal.SIGCONT)
            said = first.communicate(timeout=200)[1]
        finally:
            first.kill()
    assert second.returncode == 2 and second.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path / 'out'}: another process is at work"
    )
    assert first.returncode == 0, said
    assert read_manifest(tmp_path / "out").count > 0


@pytest.mark.slow
def test_apache_beam_writes_what_this_process_writes(built, config, tmp_path):
    pytest.importorskip("apache_beam")
    build(config, tmp_path / "beam", Runner(beam="DirectRunner"))
    assert contents(tmp_path / "beam") == contents(built)


@pytest.mark.long
def test_two_processes_write_what_one_writes(built, config, tmp_path, repository):
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    done = run(
        "--config",
        tmp_path / "config.yaml",
        "--output",
        tmp_path / "two",
        "--jobs",
        "2",
        repository=repository,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(built)
    assert "5 patches of 4 patients, 0 dead letters" in done.stderr


def test_errors_of_the_command_are_one_line(config, tmp_path):
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    arguments = ("--config", tmp_path / "config.yaml", "--output", tmp_path / "out")
    done = run_module_here("tfmammo.data.build", *arguments, "--set", "data.root=nowhere")
    assert (
        done.returncode == 2
        and done.stderr.splitlines()[-1] == "error: data.root: no such folder: nowhere"
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()

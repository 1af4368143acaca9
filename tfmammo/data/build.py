"""An archive -> TFRecord shards with a manifest, made by Apache Beam on as many machines
as there are.

    python -m tfmammo.data.build --config configs/build.yaml --output DIR [--set KEY=VALUE ...]
    [Beam's own flags]

DIR gets shard-00000-of-00064.tfrecord, ... with one .json each (what it holds, what was left out),
and at the end manifest.json, dead_letters.csv and README.md, the dataset card. Which mammograms
make a shard follows from their place in the archive alone, so the files are the same bytes whoever
makes them, and however many workers there are. A shard appears under its name only when it is
complete; one that is there and has its hash is not made again, so that a build which was stopped
goes on where it was, and a second one changes nothing. What can't be used becomes a dead letter and
stays one: to try it again (a disk was not there, say), run with --retry.

Without --runner it is Beam's DirectRunner, kept from downloading another one as it does of late.
--direct_num_workers above 1 means processes unless --direct_running_mode says otherwise. Every
worker must see the archive and DIR under the same paths, as on one machine or a shared file system;
gs:// and the like are not read.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from pydantic import Field, PositiveInt, ValidationError

from tfmammo import __version__, archives, cli, filesystem
from tfmammo.archives.files import without_names
from tfmammo.config import AddedConfig, DataConfig, Frozen, parse
from tfmammo.data import card, jobs
from tfmammo.data.patches import TEXTS, Patch, patches_of
from tfmammo.data.sampling import quota
from tfmammo.data.tfrecord import (
    COLUMNS,
    FORMAT,
    MANIFEST,
    Manifest,
    ShardFile,
    encode,
    quantised,
    sha256,
)
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram, Skipped, key_check

log = logging.getLogger(__name__)

BINS = 32  # of the histogram of grey values
IDENTITY = "build.json"
# What neither pixels nor their order depend on: where the archive lies (its records are hashed),
# how training uses patches.
_IRRELEVANT = {
    "name",
    "root",
    "records",
    "split",
    "stratify",
    "split_file",
    "folds",
    "fold",
    "paper_samples",
    "paper_test",
    "augment",
}


class ShardConfig(Frozen):
    """How the work is cut."""

    shard_mammograms: PositiveInt = 16
    """How many make one file; that much is lost at most when a worker is stopped."""


class BuildConfig(Frozen):
    """A config file of this command."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Of the dataset."""
    data: DataConfig = DataConfig()
    """Which archive and which patches; see DataConfig."""
    build: ShardConfig = ShardConfig()


class Sidecar(Frozen):
    """What one shard holds."""

    identity: str
    """Hash of everything that decides the contents."""
    shard: ShardFile
    columns: dict[str, list[str]]
    """As in Manifest."""
    histogram: list[int]
    dead_letters: dict[str, str]


@dataclass(frozen=True)
class Shard:
    """The work of one element of the pipeline: mammograms with their counts of patches, None where
    their lesions decide.
    """

    folder: Path
    file: str
    identity: str
    config: DataConfig
    jobs: tuple[tuple[Mammogram, int | None], ...]


def build(
    chosen: BuildConfig, output: Path, flags: Sequence[str] = (), retry: bool = False
) -> Manifest:
    """Make what is missing of a dataset.

    Args:
        chosen: The config.
        output: A new folder, or one of an earlier build of the same.
        flags: Beam's own.
        retry: Make the shards with dead letters anew.

    Returns:
        The manifest.

    Raises:
        ConfigError: `output` belongs to another build or holds other files, or Apache Beam is
            missing.
        ArchiveError: The root is no such archive.
        DataError: No patch can be made, or a worker failed.
    """
    if chosen.data.added != AddedConfig():
        raise ConfigError(
            "data.added: joins the training side of a split, and records are not split yet"
        )
    skipped = Skipped()
    log.info("reading the archive's tables and headers")
    mammograms = archives.mammograms(chosen.data, skipped)
    identity = _identity(chosen, mammograms)
    shards = _shards(chosen, mammograms, identity, output)
    with jobs.claimed(output, identity, IDENTITY):
        for shard in shards if retry else ():
            sidecar = _sidecar(shard)
            if sidecar and sidecar.dead_letters:
                _sidecar_path(shard).unlink()
        log.info(
            "%d mammograms in %d shards, into %s",
            sum(len(shard.jobs) for shard in shards),
            len(shards),
            output,
        )
        with jobs.progress(output, "shard-*.json", len(shards)):
            jobs.run(shards, make, flags)
        return _finish(shards, identity, chosen, skipped)


def make(shard: Shard) -> None:
    """Write one shard and then its sidecar, unless both are there and fit.

    What is wrong with a mammogram becomes a dead letter.

    Raises:
        OSError: The folder can't be written.
        tf.errors.OpError: The folder can't be written.
        RuntimeError: A fault that no file explains.
    """
    path = shard.folder / shard.file
    if _sidecar(shard) is not None:
        return
    dead = Skipped()
    histogram = np.zeros(BINS, np.int64)
    columns: dict[str, list[str]] = {
        name: [] for name in (*COLUMNS, "image_ids", "views", "lateralities")
    }
    with jobs.one_thread(), filesystem.atomic_file(path) as part:
        with tf.io.TFRecordWriter(str(part)) as writer:
            for mammogram, patch in _patches(shard, dead):
                writer.write(encode(patch))
                histogram += np.bincount(
                    quantised(patch.image).ravel() // (2**16 // BINS), minlength=BINS
                )
                _note(columns, mammogram, patch)
        written = ShardFile(
            file=shard.file,
            sha256=sha256(part),
            bytes=part.stat().st_size,
            count=len(columns["ids"]),
        )
    reasons = without_names(dead.reasons, shard.config.root)
    sidecar = Sidecar(
        identity=shard.identity,
        shard=written,
        columns=columns,
        histogram=histogram.tolist(),
        dead_letters=reasons,
    )
    filesystem.write_atomically(_sidecar_path(shard), sidecar.model_dump_json(), durable=False)


def _identity(chosen: BuildConfig, mammograms: Sequence[Mammogram]) -> dict[str, Any]:
    """Everything that decides the contents; two builds may share a folder when it is equal."""
    return {
        "format": FORMAT,
        "tfmammo": __version__,
        "name": chosen.name,
        "data": {
            key: value
            for key, value in chosen.data.model_dump(mode="json").items()
            if key not in _IRRELEVANT
        },
        "build": chosen.build.model_dump(mode="json"),
        "archive": {
            "name": archives.archive_name(chosen.data),
            "mammograms": len(mammograms),
            "records": jobs.fingerprint(mammograms),
        },
    }


def _shards(
    chosen: BuildConfig, mammograms: Sequence[Mammogram], identity: dict[str, Any], output: Path
) -> list[Shard]:
    counts = quota(mammograms, chosen.data)
    by_lesion = chosen.data.patches == "lesion"
    work = [
        (found, None if by_lesion else counts[found.image_id])
        for found in mammograms
        if counts[found.image_id]
    ]
    length = chosen.build.shard_mammograms
    parts = [tuple(work[start : start + length]) for start in range(0, len(work), length)]
    hashed = hashlib.sha256(jobs.as_json(identity).encode()).hexdigest()
    files = [f"shard-{number:05d}-of-{len(parts):05d}.tfrecord" for number in range(len(parts))]
    return [
        Shard(output, file, hashed, chosen.data, part)
        for file, part in zip(files, parts, strict=True)
    ]


def _patches(shard: Shard, dead: Skipped) -> Iterator[tuple[Mammogram, Patch]]:
    for mammogram, count in shard.jobs:
        try:
            for patch in patches_of(mammogram, shard.config, dead, count):
                yield mammogram, patch
        except (ValueError, OSError, cv2.error) as error:
            # a build of days must not end because of one file
            log.debug("%s", mammogram.image_id, exc_info=True)
            dead.add(mammogram.image_id, f"{error.__class__.__name__}: {error}")
        except Exception as error:
            # ours: kept as a dead letter, it would quietly cost every mammogram
            raise RuntimeError(
                f"{mammogram.image_id}: {error.__class__.__name__}: {error}"
            ) from error


def _note(columns: dict[str, list[str]], mammogram: Mammogram, patch: Patch) -> None:
    values = {
        **{plural: getattr(patch, single) for plural, single in TEXTS.items()},
        "image_ids": mammogram.image_id,
        "views": mammogram.view or "",
        "lateralities": mammogram.laterality or "",
    }
    for name, value in values.items():
        columns[name].append(value)


def _sidecar_path(shard: Shard) -> Path:
    return (shard.folder / shard.file).with_suffix(".json")


def _sidecar(shard: Shard) -> Sidecar | None:
    """The shard's sidecar, None unless the shard is there as it was written."""
    path = shard.folder / shard.file
    try:
        sidecar = Sidecar.model_validate_json(_sidecar_path(shard).read_bytes())
        whole = (
            sidecar.identity == shard.identity
            and sidecar.shard.file == shard.file
            and sha256(path) == sidecar.shard.sha256
        )
    except (OSError, ValidationError, DataError):
        return None
    return sidecar if whole else None


def _finish(
    shards: Sequence[Shard], identity: dict[str, Any], chosen: BuildConfig, skipped: Skipped
) -> Manifest:
    """Write what is told of all shards together."""
    dead = Skipped(without_names(skipped.reasons, skipped.root))
    sidecars = []
    for shard in shards:
        sidecar = _sidecar(shard)
        if sidecar is None:
            raise DataError(
                f"{shard.folder / shard.file}: is missing or not as it was written; run the build "
                "again"
            )
        sidecars.append(sidecar)
        for file, reason in sidecar.dead_letters.items():
            dead.add(file, reason)
    found = [sidecar.shard for sidecar in sidecars]
    manifest = Manifest(
        format=FORMAT,
        identity=identity,
        size=chosen.data.size,
        count=sum(shard.count for shard in found),
        fingerprint=hashlib.sha256("\n".join(shard.sha256 for shard in found).encode()).hexdigest()[
            :12
        ],
        histogram=tuple(np.sum([sidecar.histogram for sidecar in sidecars], axis=0).tolist()),
        shards=tuple(found),
        columns={
            name: tuple(value for part in sidecars for value in part.columns[name])
            for name in sidecars[0].columns
        },
        id_key=key_check(),
    )
    output = shards[0].folder
    filesystem.write_atomically(
        output / "dead_letters.csv", card.dead_letters(dead.reasons), durable=False
    )
    if not manifest.count:
        raise DataError(
            f"{output}: no patch could be made, dead_letters.csv says why; the first: "
            f"{next(iter(dead.reasons.items()), '-')}"
        )
    filesystem.write_atomically(output / "README.md", card.card(manifest, len(dead)), durable=False)
    filesystem.write_atomically(
        output / MANIFEST, manifest.model_dump_json(indent=1), durable=False
    )
    log.info(
        "%d patches of %d patients, %d dead letters",
        manifest.count,
        len(set(manifest.columns["patient_ids"])),
        len(dead),
    )
    return manifest


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: what goes wrong becomes one line on stderr and exit code 2."""
    parser = cli.Parser(
        prog="python -m tfmammo.data.build",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a YAML file such as configs/build.yaml"
    )
    parser.add_overrides()
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    parser.add_argument(
        "--retry", action="store_true", help="make the shards with dead letters anew"
    )
    ours, flags = parser.parse_with(arguments, jobs.unknown_to_beam)
    cli.run(
        lambda: build(
            parse(BuildConfig, ours.config, ours.set), ours.output.resolve(), flags, ours.retry
        )
    )


if __name__ == "__main__":
    # Workers must find everything under its real name; what runs as __main__ has another.
    from tfmammo.data import build as module

    module.main()

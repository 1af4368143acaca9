"""Build TFRecord shards of an archive's patches, on one machine or many.

    tfmammo build --config configs/build.yaml --output DIR [--set KEY=VALUE ...] [--jobs N]

Into DIR go shard-00000-of-00064.tfrecord, ... with one .json each. It says what the shard holds and
what was skipped. At the end follow manifest.json, failures.csv and README.md (the card).

A mammogram's shard follows from its place in the archive alone, so the files are byte-identical for
any number of workers. A shard takes its name when it is complete. A stopped build resumes: a shard
whose hash is right is not made again, unless one of its images or masks has changed. A file that
can't be used becomes a failure and stays one; --retry tries failures again, for example after a
disk was missing.

The work is done by processes of this machine. --runner FlinkRunner or another runner of Apache Beam
distributes it over many machines. Every worker must see the archive and DIR under the same paths.
gs:// and the like are not read.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import tensorflow as tf
from pydantic import Field, PositiveInt, ValidationError

from tfmammo import __version__, archives, cli, filesystem
from tfmammo.archives.files import remove_names
from tfmammo.config import AddedConfig, DataConfig, Frozen
from tfmammo.data import card, runners
from tfmammo.data.extraction import extract_patches
from tfmammo.data.patches import TEXTS, Patch
from tfmammo.data.runners import HERE, Runner
from tfmammo.data.sampling import draw_quota
from tfmammo.data.tfrecord import (
    COLUMNS,
    FORMAT,
    MANIFEST,
    Manifest,
    ShardFile,
    encode,
)
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Mammogram, Skipped, key_check

log = logging.getLogger(__name__)

IDENTITY = "build.json"
# Keys that change no pixel and no order: where the archive is (its records are hashed), and how
# training uses the patches.
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
    """Mammograms per file. A stopped worker loses at most one file."""


class BuildConfig(Frozen):
    """A config file of this command."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the dataset."""
    data: DataConfig = DataConfig()
    """Which archive and which patches; see DataConfig."""
    build: ShardConfig = ShardConfig()
    """How the work is cut into files."""


class Sidecar(Frozen):
    """What one shard holds."""

    identity: str
    """Hash of everything that decides the contents: the dataset's identity, the shard's files."""
    shard: ShardFile
    columns: dict[str, list[str]]
    """As in Manifest."""
    failures: dict[str, str]


@dataclass(frozen=True)
class Shard:
    """One file of the dataset; jobs are mammograms and their patches (None: lesions decide)."""

    folder: Path
    file: str
    identity: str
    config: DataConfig
    jobs: tuple[tuple[Mammogram, int | None], ...]

    @property
    def path(self) -> Path:
        """The file; its .json is beside it."""
        return self.folder / self.file

    @property
    def sidecar_path(self) -> Path:
        """The .json beside the file."""
        return self.path.with_suffix(".json")


def build(
    config: BuildConfig, output: Path, runner: Runner = HERE, retry: bool = False
) -> Manifest:
    """Build a dataset, or complete one that was stopped.

    Raises:
        ConfigError: `output` belongs to another build or holds other files.
        DataError: No patch can be made, or a worker failed.
    """
    if config.data.added != AddedConfig():
        raise ConfigError(
            "data.added: joins the training side of a split, and records are not split yet"
        )
    skipped = Skipped()
    log.info("reading the archive's tables and headers")
    mammograms = archives.read_mammograms(config.data, skipped)
    identity, shards = plan_shards(config, mammograms, output)
    with filesystem.claim_folder(output, identity, IDENTITY):
        count = sum(len(shard.jobs) for shard in shards)
        log.info("%d mammograms in %d shards, into %s", count, len(shards), output)
        for shard in shards if retry else ():
            sidecar = _read_sidecar(shard)
            if sidecar and sidecar.failures:
                shard.sidecar_path.unlink()
        sidecars = runners.complete_parts(
            shards, make, _read_sidecar, lambda shard: shard.sidecar_path, runner
        )
        return _write_manifest(sidecars, identity, config, skipped, output)


def make(shard: Shard) -> None:
    """Write one shard and then its sidecar; a mammogram that can't be used becomes a failure."""
    failures = Skipped()
    columns: dict[str, list[str]] = {
        name: [] for name in (*COLUMNS, "image_ids", "views", "lateralities")
    }
    with runners.use_one_thread(), filesystem.atomic_file(shard.path) as part:
        with tf.io.TFRecordWriter(str(part)) as writer:
            for mammogram, patch in _extract_patches(shard, failures):
                writer.write(encode(patch))
                values = {
                    **{plural: getattr(patch, single) for plural, single in TEXTS.items()},
                    "image_ids": mammogram.image_id,
                    "views": mammogram.view or "",
                    "lateralities": mammogram.laterality or "",
                }
                for name, value in values.items():
                    columns[name].append(value)
        shard_file = ShardFile(
            file=shard.file,
            sha256=filesystem.sha256(part),
            bytes=part.stat().st_size,
            count=len(columns["ids"]),
        )
    sidecar = Sidecar(
        identity=shard.identity,
        shard=shard_file,
        columns=columns,
        failures=remove_names(failures.reasons, shard.config.root),
    )
    filesystem.write_atomically(shard.sidecar_path, sidecar.model_dump_json(), durable=False)


def _describe_identity(config: BuildConfig, mammograms: Sequence[Mammogram]) -> dict[str, Any]:
    """Describe everything that decides the contents of a dataset."""
    return {
        "format": FORMAT,
        "tfmammo": __version__,
        "name": config.name,
        "data": {
            key: value
            for key, value in config.data.model_dump(mode="json").items()
            if key not in _IRRELEVANT
        },
        "build": config.build.model_dump(mode="json"),
        "archive": archives.describe_archive(config.data, mammograms),
    }


def list_work(
    mammograms: Sequence[Mammogram], data: DataConfig
) -> list[tuple[Mammogram, int | None]]:
    """List the mammograms that give patches, and how many; None: one for each lesion."""
    counts = draw_quota(mammograms, data)
    by_lesion = data.patches == "lesion"
    return [
        (mammogram, None if by_lesion else counts[mammogram.image_id])
        for mammogram in mammograms
        if counts[mammogram.image_id]
    ]


def plan_shards(
    config: BuildConfig, mammograms: Sequence[Mammogram], output: Path
) -> tuple[dict[str, Any], list[Shard]]:
    """Plan the files of a dataset; no pixel is read."""
    identity = _describe_identity(config, mammograms)
    work = list_work(mammograms, config.data)
    length = config.build.shard_mammograms
    parts = [tuple(work[start : start + length]) for start in range(0, len(work), length)]
    digest = hashlib.sha256(filesystem.to_json(identity).encode()).hexdigest()
    files = [f"shard-{number:05d}-of-{len(parts):05d}.tfrecord" for number in range(len(parts))]
    shards = [
        Shard(output, file, _identify(digest, part), config.data, part)
        for file, part in zip(files, parts, strict=True)
    ]
    return identity, shards


def _identify(dataset: str, part: Sequence[tuple[Mammogram, int | None]]) -> str:
    """Hash what decides the contents of a shard."""
    stamps: list[tuple[int, int] | None] = []
    for mammogram, _ in part:
        for file in archives.list_files(mammogram):
            try:
                status = file.stat()
                stamps.append((status.st_size, status.st_mtime_ns))
            except OSError:  # it becomes a failure when it is read
                stamps.append(None)
    return hashlib.sha256(filesystem.to_json([dataset, stamps]).encode()).hexdigest()


def _extract_patches(shard: Shard, failures: Skipped) -> Iterator[tuple[Mammogram, Patch]]:
    for mammogram, count in shard.jobs:
        try:
            for patch in extract_patches(mammogram, shard.config, failures, count):
                yield mammogram, patch
        except (ValueError, OSError, cv2.error) as error:
            # A build of days must not end because of one file.
            log.debug("%s", mammogram.image_id, exc_info=True)
            failures.add(mammogram.image_id, f"{error.__class__.__name__}: {error}")
        except Exception as error:
            # A fault of this code. As a failure it would quietly cost every mammogram.
            raise RuntimeError(
                f"{mammogram.image_id}: {error.__class__.__name__}: {error}"
            ) from error


def _read_sidecar(shard: Shard) -> Sidecar | None:
    """Read a shard's sidecar. None unless the shard is there as it was written."""
    try:
        sidecar = Sidecar.model_validate_json(shard.sidecar_path.read_bytes())
        is_whole = (
            sidecar.identity == shard.identity
            and sidecar.shard.file == shard.file
            and filesystem.sha256(shard.path) == sidecar.shard.sha256
        )
    except (OSError, ValidationError, DataError):
        return None
    return sidecar if is_whole else None


def _write_manifest(
    sidecars: Sequence[Sidecar],
    identity: dict[str, Any],
    config: BuildConfig,
    skipped: Skipped,
    output: Path,
) -> Manifest:
    """Write what describes all shards together: failures, card, manifest."""
    failures = Skipped(remove_names(skipped.reasons, skipped.root))
    for sidecar in sidecars:
        for file, reason in sidecar.failures.items():
            failures.add(file, reason)
    shards = [sidecar.shard for sidecar in sidecars]
    digests = "\n".join(shard.sha256 for shard in shards)
    columns = {
        name: tuple(value for sidecar in sidecars for value in sidecar.columns[name])
        for name in sidecars[0].columns
    }
    manifest = Manifest(
        format=FORMAT,
        identity=identity,
        size=config.data.size,
        count=sum(shard.count for shard in shards),
        fingerprint=hashlib.sha256(digests.encode()).hexdigest()[:12],
        shards=tuple(shards),
        columns=columns,
        id_key=key_check(),
    )
    files = {"failures.csv": failures.to_csv()}
    if manifest.count:
        files["README.md"] = card.format_card(manifest, len(failures))
        files[MANIFEST] = manifest.model_dump_json(indent=1)
    for name, content in files.items():
        filesystem.write_atomically(output / name, content, durable=False)
    if not manifest.count:
        first = ": ".join(next(iter(failures.reasons.items()), "-"))
        raise DataError(
            f"{output}: no patch could be made, failures.csv says why; the first: {first}"
        )
    log.info(
        "%d patches of %d patients, %d failures",
        manifest.count,
        len(set(manifest.columns["patient_ids"])),
        len(failures),
    )
    return manifest


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. An error becomes one line on stderr and exit code 2."""
    parser = cli.make_command_parser("build", __doc__)
    parser.add_config(BuildConfig)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to write")
    parser.add_argument("--retry", action="store_true", help="make shards with failures again")
    runners.add_options(parser)
    ours, runner = runners.parse(parser, arguments)
    cli.run(
        lambda: build(cli.read_config(BuildConfig, ours), ours.output.resolve(), runner, ours.retry)
    )


if __name__ == "__main__":
    # Workers must find everything under its real name; what runs as __main__ has another.
    from tfmammo.data import build as module

    module.main()

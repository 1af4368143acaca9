"""What the train and evaluate scripts share: arguments, devices, data, the closing table."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from tfmammo import command, durable
from tfmammo import config as configuration
from tfmammo.archives import archive_name, mammograms
from tfmammo.archives.files import without_names
from tfmammo.config import AddedConfig, ConfigError, DataConfig, Experiment, TrainingConfig
from tfmammo.data import jobs, splits
from tfmammo.data.patches import Make, Patches, make_patches
from tfmammo.data.tfrecord import Records, read_manifest
from tfmammo.metrics import segmentation, synthesis
from tfmammo.quiet import held_back
from tfmammo.record import Skipped
from tfmammo.training import devices, folder, loop, notice, store, workers
from tfmammo.training.added import with_added

log = logging.getLogger(__name__)
console = Console()
SPLIT = "split.json"


def arguments(description: str, config: str | None = None) -> command.Parser:
    """The parser every script starts from: --config, --set, --output."""
    parser = command.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=config is None, default=config, metavar="FILE", help="a YAML file from configs/")
    parser.add_overrides("training.steps=3 data.root=DIR")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write; default: a folder of its own under runs/")
    return parser


def run(main: Callable[[], None]) -> None:
    """Run a script as any command; a stop signal, its checkpoint saved, is exit code 128 + its number."""

    def stoppable() -> None:
        try:
            main()
        except loop.Interrupted as stop:
            log.info("%s", stop)
            sys.exit(128 + stop.signal)

    command.run(stoppable)


def train(description: str, room: Callable[[Any, int], loop.Room], model: type) -> None:
    """What every train script does: read the config, split the data by patient, fit, show what came out.

    Args:     description: for --help. room: a class of tfmammo.models or tfmammo.baselines. model: its config class.
    """
    chosen = arguments(description).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, model)
    prepare(experiment.training)
    output = chosen.output or default_output(experiment)
    patches, held_out = datasets(experiment.data, output)
    metrics = loop.fit(lambda: room(experiment.model, experiment.data.size), experiment, patches, held_out, output, validate)
    summary(experiment, metrics, held_out, output)


def default_output(experiment: Experiment[Any]) -> Path:
    """runs/NAME-ARCHIVE-FINGERPRINT: the same command comes back to its folder, another one gets its own."""
    return Path("runs") / f"{experiment.name}-{archive_name(experiment.data)}-{experiment.fingerprint()}"


def prepare(training: TrainingConfig) -> None:
    """Set precision and threads, join the other workers; before the first TensorFlow operation of the process.

    Raises:   ConfigError: training.deterministic is wanted, but TensorFlow's threads are already running; or nothing says who the
              workers are. WorkerError: they don't come together.
    """
    cluster = workers.cluster() if training.strategy == "multi_worker" else None
    with held_back():
        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        keras.config.set_dtype_policy(devices.precision(training, gpus))
        if training.deterministic:
            try:
                # The only setting found under which two float32 runs on a CPU agree bit for bit.
                tf.config.threading.set_inter_op_parallelism_threads(1)
            except RuntimeError:
                raise ConfigError("training.deterministic: must be set before TensorFlow's first operation in the process") from None
            tf.config.experimental.enable_op_determinism()
        if cluster:
            workers.join(cluster)
        tf.config.list_logical_devices()


def all_patches(config: DataConfig, make: Make = make_patches) -> Patches:
    """Every patch of the archive, or of data.records; what was left out is logged with the reason, file by file.

    Args:     make: what makes patches of mammograms: data.patches.make_patches, or as it. Records hold what that one made.
    Raises:   ConfigError: data.records is set for another `make`, or data.added, which `datasets` alone heeds.
    """
    refuse_added(config)
    if config.records:
        return _records(config, make).load()
    skipped = Skipped()
    patches = make(mammograms(config, skipped), config, skipped)
    report(skipped)
    return patches


def refuse_added(config: DataConfig) -> None:
    """Raise ConfigError where data.added is set: for whatever is no training on one side of a split."""
    if config.added != AddedConfig():
        raise ConfigError("data.added: joins the training side of a split; nothing here is trained on it")


def report(skipped: Skipped) -> None:
    """Log how many files were left out, the first of them with their reasons; all of them in the debug log. Files go by pseudonyms."""
    reasons = without_names(skipped.reasons, skipped.root)
    for file, reason in reasons.items():
        log.debug("skipped %s: %s", file, reason)
    if len(skipped):
        counts = "; ".join(f"{file}: {reason}" for file, reason in list(reasons.items())[:3])
        log.info("%d files were left out, wholly or in part (%s%s)", len(skipped), counts, "; ..." if len(skipped) > 3 else "")


def datasets(config: DataConfig, output: Path | None = None, make: Make = make_patches) -> tuple[Patches | Records, Patches]:
    """(training, held-out) patches by `config.split`; for "patient" and "official" no patient stands on both sides.

    Args:     config: what to read and how to part it; with data.records the training patches stay on disk. What data.added names
              joins the training patches.
              output: where split.json goes, which tells every patient's place. make: see `all_patches`.
    Raises:   as `all_patches`, `splits.split` and `added.with_added`.
    """
    notice.announce(config)
    alone = config.model_copy(update={"added": AddedConfig()})
    found: Patches | Records = _records(config, make) if config.records else all_patches(alone, make)
    train_patches, held_out = splits.split(found, alone)
    if config.split == "paper":
        log.warning(
            "data.split=paper: copies of one lesion stand on both sides, as in CAN's protocol; the metrics are too good%s",
            "; data.augment is off, because the copies are turned already" if config.augment else "",
        )
    if output:
        _keep_split(found, alone, output)
    held_out = held_out.load() if isinstance(held_out, Records) else held_out
    if config.added.copies or config.added.synthetic:
        if isinstance(train_patches, Records):
            raise ConfigError("data.added: can't join data.records, which hold patches alone; set data.name and data.root instead")
        skipped = Skipped()
        train_patches = with_added(train_patches, held_out, config, make, skipped)
        report(skipped)
    return train_patches, held_out


def archive_split(config: DataConfig, output: Path) -> DataConfig:
    """The data section with one split of all the archive's patients, so that trainings on different patches of it agree.

    `splits.split` goes by the patches that there are, and masses are of other patients than calcifications: what trains one
    network would test the next.

    Args:     config: split "patient" is decided here by name, root, folds, seed and stratify; other splits, and a split_file, stay.
              output: split.json is written there, once.
    Raises:   ConfigError: the archive is not there. DataError: it can't be split.
    """
    if config.split != "patient" or config.split_file:
        return config
    return config.model_copy(update={"split_file": keep_archive_split(config, output, once=folder.begun(output))})


def keep_archive_split(config: DataConfig, output: Path, once: bool = True) -> Path:
    """Write the split of all the archive's patients, of whatever kind or from whatever file it is, as split.json.

    Args:     once: leave the one that is there.
    Returns:  the file, for `split_file`.
    Raises:   as `archive_split`.
    """
    path = output / SPLIT
    _write_split(path, splits.describe(whole_archive(config), config, archive_name(config)), once)
    return path


def whole_archive(config: DataConfig) -> splits.Mammograms:
    """All the archive's mammograms as something to split; no pixel is read."""
    return splits.Mammograms.of(mammograms(config, Skipped()))


def _records(config: DataConfig, make: Make) -> Records:
    assert config.records
    if make is not make_patches:
        raise ConfigError("data.records: hold patches of lesions, which serve other trainings; set data.name and data.root instead")
    if not config.records.is_dir():
        raise ConfigError(f"data.records: no such folder: {config.records}")
    records = Records.open(config.records)
    if records.size != config.size:
        raise ConfigError(f"data.size: {config.size} px, but the patches in {config.records} have {records.size}")
    return records


def _keep_split(found: Patches | Records, config: DataConfig, output: Path) -> None:
    archive = read_manifest(config.records).identity["archive"]["name"] if config.records else archive_name(config)
    _write_split(output / SPLIT, splits.describe(found, config, archive), once=folder.begun(output))


def _write_split(path: Path, decided: splits.SavedSplit, once: bool) -> None:
    """Write split.json. once: it belongs to what stands in the folder; else a start that failed may have left another one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (once and path.exists()):
            with jobs.written(path) as part:  # several workers may write it at once
                splits.save(part, decided)
                durable.flush(part)
    except OSError as error:
        raise ConfigError(f"{path.parent}: can't be written to ({error.strerror})") from None


def validate(functions: loop.Functions, held_out: Patches) -> dict[str, float]:
    """Held-out metrics of a room's functions: image -> mask gives Dice, Jaccard, ...; mask -> image gives SSIM, L1.

    Returns:  means over patches, the criterion for the best checkpoint first.
    """
    found: dict[str, float] = {}
    for function in functions.values():
        inputs = {spec.name for spec in function.input_signature}
        if inputs == {"image"}:
            masks = predict(function, "image", held_out.images)["mask"]
            scores = segmentation.per_image(held_out.masks, masks)
            found = {**{name: float(scores[name].mean()) for name in ("dice", "jaccard", "accuracy", "mcc")}, **found}
        elif inputs == {"mask"}:
            images = predict(function, "mask", held_out.masks.astype(np.float32))["image"]
            scores = synthesis.per_image(held_out.images, images, held_out.masks)
            found |= {name: float(scores[name].mean()) for name in ("ssim", "l1")}
    return found


def predict(function: Callable[..., dict[str, tf.Tensor]], name: str, values: np.ndarray, batch: int = 8) -> dict[str, np.ndarray]:
    """Run an exported function over many patches, `batch` at a time. Returns float32 arrays by output name."""
    parts = [function(**{name: tf.constant(values[i : i + batch])}) for i in range(0, len(values), batch)]
    return {key: np.concatenate([np.asarray(part[key], np.float32) for part in parts]) for key in parts[0]}


def summary(experiment: Experiment[Any], metrics: dict[str, float], held_out: Patches, output: Path) -> None:
    """Print the closing table and where picture, model and history are; nothing of a worker that is not the chief, which has no metrics."""
    if not metrics:
        return
    table = Table(title=f"{experiment.name}: {len(held_out)} held-out patches of {len(set(held_out.patient_ids))} patients")
    for heading in ("metric", "mean"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    pictures: Sequence[Path] = sorted((output / "samples").glob("step_*.png"))
    for what, where in (
        ("picture", pictures[-1] if pictures else "-"),
        ("model", output / "export"),
        ("history", store.how_to_look(store.store_uri(experiment.tracking.uri))),
    ):
        console.print(f"{what:<10}{where}", markup=False, highlight=False, soft_wrap=True)

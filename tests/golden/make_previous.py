"""Writes tests/golden/previous.tar.gz: what the version before the packages (git 6174f55) made.

git checkout 6174f55 && pip install -e ".[test]" && python tests/golden/make_previous.py FOLDER

A training stopped at step 4 of 8, what it becomes at step 8, its export, the model that it
registered, two synthetic sets with their recipes, and a reader study with answers and results.
Everything is of the phantom and lies under relative paths. tests/test_previous_version.py reads it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    "data.size=32", "data.phantoms=12", "training.deterministic=true",
    "training.precision=float32", "training.checkpoint_every=2", "training.steps_per_loop=2",
    "training.validate_every=4", "training.grid_every=100", "training.batch_size=2",
    "tracking.system_metrics=false", "tracking.uri=sqlite:///mlflow.db",
    "model.filters=[4,8,8]", "model.discriminator_filters=4",
)  # fmt: skip
SETS = {
    "poisson": ("renderer=poisson", "generator=null"),
    "can": ("renderer=can", "generator=can"),
}
STUDY = (
    "real.name=phantom", "real.phantoms=40", "real.size=32", "pairs=2", "ratings=2", "samples=200",
    "systems={poisson: {name: folder, root: sets/poisson}}", "database=study/answers.sqlite",
)  # fmt: skip


def run(*arguments: str) -> str:
    """Run Python with these arguments here, and return what it prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The float variables of the networks in a training's last checkpoint, by their names."""
    reader = tf.train.load_checkpoint(str(tf.train.latest_checkpoint(folder / "checkpoints")))
    types = reader.get_variable_to_dtype_map()
    names = [name for name in sorted(types) if name.startswith("network_")]
    return {name: reader.get_tensor(name) for name in names if types[name] == tf.float32}


def main(folder: Path) -> None:
    """Make everything in an empty folder, and pack it."""
    import os

    folder.mkdir(parents=True)
    os.chdir(folder)
    train = (str(ROOT / "train/can.py"), "--config", str(ROOT / "configs/quickstart.yaml"))
    common = (*train, "--output", "can", "--set", *TRAINING)
    run(*common, "training.steps=4")
    np.savez_compressed("step_4.npz", **weights(Path("can")))
    shutil.copytree("can", "stopped")
    shutil.rmtree("stopped/export")
    run(*common, "training.steps=8")
    np.savez_compressed("step_8.npz", **weights(Path("can")))
    loaded = tf.saved_model.load("can/export/inverter")
    image = tf.reshape(tf.range(32 * 32, dtype=tf.float32) / 1024, (1, 32, 32, 1))
    mask = loaded.signatures["serving_default"](image=image)["mask"]
    np.save("mask.npy", np.asarray(mask))
    (model,) = sorted(path.parent for path in Path("mlruns").rglob("MLmodel"))[-1:]
    shutil.copytree(model, "registered")
    description = Path("registered/MLmodel")
    text = description.read_text().replace(f"{folder.resolve()}/", "").replace(f"{ROOT}/", "")
    description.write_text(text)
    for name, overrides in SETS.items():
        run("-m", "tfmammo.synthesis", "--config", str(ROOT / "configs/synthesis_blending.yaml"),
            "--output", f"sets/{name}", "--set", "data.name=phantom", "data.phantoms=40",
            "count=16", "format=png", "seed=3", *overrides)  # fmt: skip
    study = ("-m", "tfmammo.apps.reader_study", "--config", str(ROOT / "configs/reader_study.yaml"))
    chosen = ("--set", *STUDY)
    run(*study, "cases", *chosen)
    answer()
    facts = {"results": run(*study, "results", *chosen)}
    run(*study, "export", "--output", "out", *chosen)
    facts["answers"] = Path("out/answers.csv").read_text()
    Path("facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    for path in Path("sets").rglob("*"):  # the recipes hold their SHA-256
        if path.suffix in (".png", ".dcm"):
            path.unlink()
    for path in (*Path("can").glob("samples"), *Path("stopped").glob("samples")):
        shutil.rmtree(path)
    shutil.rmtree("can/checkpoints")
    for path in Path("stopped/checkpoints").glob("ckpt-2.*"):
        path.unlink()
    with tarfile.open(Path(__file__).with_name("previous.tar.gz"), "w:gz") as archive:
        for name in (
            "can",
            "stopped",
            "registered",
            "sets",
            "study",
            "mask.npy",
            "step_4.npz",
            "step_8.npz",
            "facts.json",
        ):
            archive.add(name)


def answer() -> None:
    """Two readers answer every case: one is right, the other rates at random."""
    from tfmammo import config as configuration
    from tfmammo.apps.reader_study import ReaderStudy, ReaderStudyConfig

    config = configuration.parse(ReaderStudyConfig, ROOT / "configs/reader_study.yaml", STUDY)
    study = ReaderStudy(config)
    for number, reader in enumerate(("a", "b")):
        for place, case in enumerate(study.cases(reader)):
            right = number == 0 or place % 2
            other = "left" if case.truth == "right" else "right"
            rating = 5 if (case.truth == "real") == bool(right) else 2
            value = (case.truth if right else other) if case.task == "choice" else rating
            assert study.answer(reader, case, value, 1.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

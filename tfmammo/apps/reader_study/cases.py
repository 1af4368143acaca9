"""The cases of a reader study: patches of real and of synthetic lesions, no patient twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from scipy import optimize, sparse

from tfmammo.archives import tables
from tfmammo.config import DataConfig, Statistics
from tfmammo.data import datasets
from tfmammo.data.patches import Patches
from tfmammo.data.patients import PATIENTS, read_patients
from tfmammo.errors import DataError, name_key
from tfmammo.mammogram import hash_id, hash_patient

REAL: Final = "real"  # the real lesions, wherever systems are named
SCALE: Final = range(1, 7)
# How patches are cut. The section `real` decides it for all systems, so that patches differ in
# their lesions only.
CUT: Final = (
    *("preprocess", "patches", "sampling", "kinds", "size", "frame", "context", "padding", "pad"),
    *("percentiles", "window"),
)
Task = Literal["choice", "rating"]
Truth = Literal["left", "right", "real", "synthetic"]


class ReaderStudyConfig(Statistics):
    """A config file of a reader study."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the study."""
    database: Path
    """SQLite file of cases and answers, on a local disk. A missing folder is created."""
    real: DataConfig = DataConfig()
    """Archive of real lesions, and how all patches are cut."""
    systems: dict[str, DataConfig] = Field(min_length=1)
    """Each system's synthetic mammograms, usually name=folder and the root of a set of `tfmammo
    synthesize`. Keys that cut patches are omitted, or as in `real`. Lesions that a mammogram had
    before synthesis are not shown.
    """
    pairs: NonNegativeInt = 10
    """Pairs of a real and a synthetic patch for each system."""
    ratings: int = Field(default=12, ge=0, multiple_of=2)
    """Single patches for each system, half of them real, an even number. A reader's AUC needs six
    of either kind for an interval.
    """
    seed: NonNegativeInt = 0
    """Seed of the cases; their order follows from it and the reader's name."""
    show_results: bool = False
    """Show each reader at the end how many answers were right."""
    results: bool = False
    """Show everybody's results to readers who have finished, once all who have begun have; false:
    only the command `results` shows them.
    """
    samples: PositiveInt = 2000
    """Samples of the bootstrap."""

    @model_validator(mode="after")
    def _consistent(self) -> ReaderStudyConfig:
        if not self.pairs + self.ratings:
            raise ValueError("pairs and ratings must not both be 0")
        if self.real.patches == "normal":
            raise ValueError("real.patches=normal has no lesions; use lesion or offset")
        cut = {key: getattr(self.real, key) for key in CUT}
        for name, data in self.systems.items():
            if not name.isprintable() or name in ("", REAL):
                raise ValueError(f"systems: {name!r} can't be the name of a system")
            if data.name == "phantom" or not data.root or data.records:
                raise ValueError(
                    f"systems.{name}: must have the name and root of a folder of synthetic "
                    "mammograms, and no records"
                )
            for key in sorted(data.model_fields_set & set(CUT)):
                if getattr(data, key) != cut[key]:
                    raise ValueError(
                        f"systems.{name}.{key}: must be as in real, or readers could distinguish "
                        "patches by how they are cut"
                    )
        systems = {name: data.model_copy(update=cut) for name, data in self.systems.items()}
        object.__setattr__(self, "systems", systems)
        return self

    def identity(self) -> str:
        """Hash all settings that decide the cases, without the places of files."""
        keys = {"name", "real", "systems", "pairs", "ratings", "seed"}
        content = self.model_dump(mode="json", include=keys, exclude_defaults=True)
        for data in (content.get("real", {}), *content["systems"].values()):
            data.pop("root", None)
            data.pop("records", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Case:
    """One question to a reader."""

    number: int  # from 1 up
    task: Task  # choose the real patch of a pair, or rate a single patch
    system: str  # whose lesions are compared with real ones
    truth: Truth  # the side of the real patch, or what the rated patch is; readers never see it
    real: str  # id of the real patch; "" if only a synthetic one is shown
    synthetic: str  # id of the synthetic patch; "" if only a real one is shown

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """(source, id) of each patch that is shown, from left to right."""
        pair = [(REAL, self.real), (self.system, self.synthetic)]
        if self.truth == "right":
            pair.reverse()
        return tuple((source, patch_id) for source, patch_id in pair if patch_id)

    @property
    def allowed(self) -> tuple[str, ...]:
        """The possible answers."""
        return ("left", "right") if self.task == "choice" else tuple(map(str, SCALE))


@dataclass(frozen=True, eq=False)
class Source:
    """Patches of real lesions, or of one system's."""

    patches: Patches
    patients: list[frozenset[str]]  # of each patch: its tissue and its lesion may be of two


def load_sources(config: ReaderStudyConfig) -> dict[str, Source]:
    """Load all patches that cases can be drawn from: REAL and each system."""
    with name_key("real"):
        real = datasets.load_all_patches(config.real)
    patients = [frozenset([patient]) for patient in real.patient_ids.tolist()]
    sources = {REAL: Source(real, patients)}
    for name, data in config.systems.items():
        assert data.root
        with name_key(f"systems.{name}"):
            sources[name] = _load_synthetic(datasets.load_all_patches(data), data.root)
        if sources[name].patches.images.shape[1:] != real.images.shape[1:]:
            raise DataError(
                f"systems.{name}: its patches have another size than the patches of real"
            )
    return sources


def _load_synthetic(patches: Patches, root: Path) -> Source:
    """Select the synthetic lesions of a folder, with their patients in the original archives."""
    original = _list_original_lesions(root)
    lesion_patients = _map_lesion_patients(root)
    ids = patches.ids.tolist()
    rows = [row for row, name in enumerate(ids) if name.partition("@")[0] not in original]
    if not rows:
        raise DataError(f"{root}: has no synthetic lesion")
    patches = patches.take(rows)
    names = _map_patients(root)
    patients = []
    for name, patient in zip(patches.ids.tolist(), patches.patient_ids.tolist(), strict=True):
        donors = lesion_patients.get(name.partition("#")[0].partition("@")[0], [])
        if names is None:  # not a set of tfmammo.synthesis: names as the archive `folder` has them
            donors = [hash_patient("folder", donor) for donor in donors]
        elif patient not in names:
            raise DataError(
                f"{root}: {PATIENTS} does not name every patient of the set; run the synthesis "
                "again"
            )
        patients.append(frozenset([names[patient] if names else patient, *donors]))
    return Source(patches, patients)


def _map_patients(root: Path) -> dict[str, str] | None:
    """Map a patient's id in the archive `folder` to the id in the original archive.

    None for a folder that is not a set of tfmammo.synthesis.
    """
    if not (root / PATIENTS).is_file():
        return None
    patients = read_patients(root).mammograms
    return {hash_patient("folder", patient): patient for patient in patients}


def _map_lesion_patients(root: Path) -> dict[str, list[str]]:
    """Map an image_id to the patients whose lesions were inserted, by metadata.csv."""
    if not (root / "metadata.csv").is_file():
        return {}
    return {
        _image_id(row["file"]): row.get("lesion_patient", "").casefold().split()
        for _, row in tables.read_table(root / "metadata.csv", ["file"])
    }


def _list_original_lesions(root: Path) -> set[str]:
    """List the patch ids of the lesions that annotations.json marks as older than the synthesis."""
    try:
        content = json.loads((root / "annotations.json").read_bytes())
        files = {image["id"]: _image_id(image["file_name"]) for image in content["images"]}
        synthetic: dict[str, list[bool]] = {}
        for annotation in content["annotations"]:
            flags = synthetic.setdefault(files[annotation["image_id"]], [])
            flags.append(annotation.get("synthetic", True))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise DataError(f"{root}: annotations.json is damaged; run the synthesis again") from None
    return {
        f"{image}#{number}"
        for image, flags in synthetic.items()
        for number, is_synthetic in enumerate(flags)
        if not is_synthetic
    }


def _image_id(file: str) -> str:
    path = Path(file.strip().removeprefix("images/"))
    return hash_id("folder", path.with_suffix("").as_posix())


def draw_cases(config: ReaderStudyConfig, sources: Mapping[str, Source]) -> list[Case]:
    """Draw the cases of a study, without showing any patient twice.

    Each system has the same number of cases of either task, and as many real patches to rate as
    synthetic ones. A coin decides the side of each pair: with balanced sides, a reader who guesses
    and balances answers would be right too often or too rarely for a test against guessing.
    """
    random = np.random.default_rng(config.seed)
    per_system = config.pairs + config.ratings // 2
    counts = {REAL: per_system * len(config.systems), **dict.fromkeys(config.systems, per_system)}
    selected = _select_patches(sources, counts, random)
    cases: list[Case] = []
    for system in config.systems:
        real = [selected[REAL].pop() for _ in range(per_system)]
        synthetic = [selected[system].pop() for _ in range(per_system)]
        sides = random.choice(["left", "right"], config.pairs).tolist()
        cases += [Case(0, "choice", system, side, real.pop(), synthetic.pop()) for side in sides]
        cases += [Case(0, "rating", system, "real", patch_id, "") for patch_id in real]
        cases += [Case(0, "rating", system, "synthetic", "", patch_id) for patch_id in synthetic]
    numbers = random.permutation(len(cases)) + 1
    numbered = [
        replace(case, number=int(number)) for number, case in zip(numbers, cases, strict=True)
    ]
    return sorted(numbered, key=lambda case: case.number)


def _select_patches(
    sources: Mapping[str, Source], counts: Mapping[str, int], random: np.random.Generator
) -> dict[str, list[str]]:
    """Select random patches of each source so that no patient is shown twice.

    `counts` says how many of each source; their ids come back in random order. An integer linear
    programme, solved exactly: with patients shared by several sources, a greedy selection can miss
    a possible study.
    """
    items = [(name, row) for name, source in sources.items() for row in range(len(source.patches))]
    everybody = sorted(
        {patient for source in sources.values() for shown in source.patients for patient in shown}
    )
    limits = {("patient", patient): 1 for patient in everybody}
    limits |= {("source", name): counts[name] for name in sources}
    numbers = {key: number for number, key in enumerate(limits)}
    entries = [
        (numbers["patient", patient], item)
        for item, (name, row) in enumerate(items)
        for patient in sources[name].patients[row]
    ]
    entries += [(numbers["source", name], item) for item, (name, _) in enumerate(items)]
    places = np.array(entries, np.intp).reshape(-1, 2).T
    matrix = sparse.csr_array(
        (np.ones(len(entries)), tuple(places)), shape=(len(limits), len(items))
    )
    # The random parts add up to less than one patch, so the number of patches is maximal.
    gain = 1 + random.random(len(items)) / (2 * sum(counts.values()))
    solution = optimize.milp(
        -gain,
        integrality=1,
        bounds=optimize.Bounds(0, 1),
        constraints=optimize.LinearConstraint(matrix, ub=list(limits.values())),
        options={"mip_rel_gap": 0},
    )
    selected: dict[str, list[str]] = {name: [] for name in sources}
    for item in random.permutation(np.flatnonzero(np.round(solution.x))):
        name, row = items[item]
        selected[name].append(str(sources[name].patches.ids[row]))
    missing = [
        f"{counts[name] - len(ids)} of {counts[name]} for {name}"
        for name, ids in selected.items()
        if len(ids) < counts[name]
    ]
    if missing:
        raise DataError(
            f"no patient is shown twice, so patients are missing: {', '.join(missing)}; choose "
            "fewer pairs or ratings"
        )
    return selected


def encode_images(
    cases: Sequence[Case], sources: Mapping[str, Source]
) -> dict[tuple[str, str], bytes]:
    """Encode every shown patch, by (source, id), as an 8-bit PNG.

    The PNGs are not compressed: the length of a compressed one would depend on its texture.
    """
    rows = {
        name: {patch_id: row for row, patch_id in enumerate(source.patches.ids.tolist())}
        for name, source in sources.items()
    }
    encoded: dict[tuple[str, str], bytes] = {}
    for case in cases:
        for name, patch_id in case.shown:
            if patch_id not in rows.get(name, {}):
                raise DataError(
                    f"{name}: a patch of the cases no longer exists; name a new database"
                )
            image = sources[name].patches.images[rows[name][patch_id]][..., 0]
            grey = np.rint(image * 255).astype(np.uint8)
            png = cv2.imencode(".png", grey, (cv2.IMWRITE_PNG_COMPRESSION, 0))[1]
            encoded[name, patch_id] = png.tobytes()
    return encoded


def hash_cases(cases: Sequence[Case], images: Mapping[tuple[str, str], bytes]) -> str:
    """Hash the cases and the images that they show."""
    content = hashlib.sha256(repr([astuple(case) for case in cases]).encode())
    for case in cases:
        for key in case.shown:
            content.update(images[key])
    return content.hexdigest()

"""The cases of a reader study: which patches of real and of synthetic lesions are asked
about, nobody shown twice.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from scipy import optimize, sparse

from tfmammo import datasets
from tfmammo.config import DataConfig, Frozen
from tfmammo.data.patches import Patches
from tfmammo.data.patients import PATIENTS
from tfmammo.data.patients import Patients as SetPatients
from tfmammo.errors import DataError
from tfmammo.mammogram import hashed_id, key_fault

REAL: Final = "real"  # what stands for the real lesions where systems are named
SCALE: Final = range(1, 7)
# How patches are cut, which `real` says for all: else that would tell them apart, and not the
# lesions.
CUT: Final = (
    "preprocess",
    "patches",
    "sampling",
    "kinds",
    "size",
    "frame",
    "context",
    "padding",
    "pad",
    "percentiles",
    "window",
)
Task = Literal["choice", "rating"]
Truth = Literal["left", "right", "real", "synthetic"]


class ReaderStudyConfig(Frozen):
    """A config file of a reader study."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Of the study."""
    real: DataConfig = DataConfig()
    """The archive of real lesions, and how the patches of all are cut."""
    systems: dict[str, DataConfig] = Field(min_length=1)
    """Name -> where its synthetic mammograms are, mostly name=folder and the root of a set of
    `python -m tfmammo.synthesis`; how they are cut is left out, or as in `real`. Lesions that such
    a mammogram had before are not shown.
    """
    pairs: int = Field(default=10, ge=0, multiple_of=2)
    """Of a real and a synthetic patch, for each system."""
    ratings: int = Field(default=10, ge=0, multiple_of=2)
    """Of single patches, for each system, half of them real. Both even."""
    seed: NonNegativeInt = 0
    """Of the cases, and with a reader's name of their order."""
    database: Path
    """The SQLite file of cases and answers, on a local disk; its folder is made where it is
    missing.
    """
    show_results: bool = False
    """Tell readers at the end how they did."""
    results: bool = False
    """Show everybody's results in the app to whoever is through, once all who have begun are;
    false: by this command alone.
    """
    samples: PositiveInt = 2000
    """Of the bootstrap, and of all intervals."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the bootstrap, and of all intervals."""

    @model_validator(mode="after")
    def _consistent(self) -> ReaderStudyConfig:
        if not self.pairs + self.ratings:
            raise ValueError("pairs and ratings must not both be 0")
        if self.real.patches == "normal":
            raise ValueError("real.patches=normal shows no lesion; take lesion or offset")
        cut = {key: getattr(self.real, key) for key in CUT}
        for name, data in self.systems.items():
            if not name.isprintable() or name in ("", REAL):
                raise ValueError(f"systems: {name!r} can't be a system's name")
            if data.name == "phantom" or not data.root or data.records:
                raise ValueError(
                    f"systems.{name}: needs name and root of a folder of synthetic mammograms, "
                    "and no records"
                )
            for key in sorted(data.model_fields_set & set(CUT)):
                if getattr(data, key) != cut[key]:
                    raise ValueError(
                        f"systems.{name}.{key}: is as in real, or patches would be told apart by "
                        "how they are cut"
                    )
        object.__setattr__(
            self,
            "systems",
            {name: data.model_copy(update=cut) for name, data in self.systems.items()},
        )
        return self

    def identity(self) -> str:
        """A hash of what decides the cases, but for where files lie."""
        kept = {"name", "real", "systems", "pairs", "ratings", "seed"}
        content = self.model_dump(mode="json", include=kept, exclude_defaults=True)
        for data in (content.get("real", {}), *content["systems"].values()):
            data.pop("root", None)
            data.pop("records", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Case:
    """What is asked.

    Attributes:
        number: From 1 up.
        truth: On which side the real patch is, or what the rated one is; never shown.
        real: Ids of the patches, "" where only the other is shown.
        synthetic: Ids of the patches, "" where only the other is shown.
    """

    number: int
    task: Task
    system: str
    truth: Truth
    real: str
    synthetic: str

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """(source, id) of each patch that is seen, from left to right."""
        pair = [(REAL, self.real), (self.system, self.synthetic)]
        return tuple(one for one in (pair[::-1] if self.truth == "right" else pair) if one[1])

    @property
    def allowed(self) -> tuple[str, ...]:
        """The answers that there are."""
        return ("left", "right") if self.task == "choice" else tuple(map(str, SCALE))


@dataclass(frozen=True, eq=False)
class Source:
    """Patches of real lesions, or of one system's.

    Attributes:
        patients: Of each, whom it shows: tissue and lesion may be of two.
    """

    patches: Patches
    patients: list[frozenset[str]]


def sources(config: ReaderStudyConfig) -> dict[str, Source]:
    """All patches that cases can be drawn from: REAL and each system.

    Raises as `cli.all_patches`, and DataError: a set is damaged.
    """
    real = datasets.all_patches(config.real)
    found = {REAL: Source(real, [frozenset([patient]) for patient in real.patient_ids.tolist()])}
    for name, data in config.systems.items():
        assert data.root
        found[name] = _synthetic(datasets.all_patches(data), data.root)
        if found[name].patches.images.shape[1:] != real.images.shape[1:]:
            raise DataError(f"systems.{name}: its patches are of another size than the real ones")
    return found


def _synthetic(patches: Patches, root: Path) -> Source:
    """The synthetic lesions of a folder, and whom they show, called as in the archives that they
    were made from.
    """
    own = _own_lesions(root)
    lesions = _lesion_patients(root)
    rows = [
        row for row, name in enumerate(patches.ids.tolist()) if name.partition("@")[0] not in own
    ]
    if not rows:
        raise DataError(f"{root}: shows no synthetic lesion")
    patches = patches.take(rows)
    names = _set_patients(root)
    patients = []
    for name, patient in zip(patches.ids.tolist(), patches.patient_ids.tolist(), strict=True):
        of_lesions = lesions.get(name.partition("#")[0].partition("@")[0], [])
        # no set of tfmammo.synthesis.mammograms: its own names, as the archive `folder` takes them
        if names is None:
            patients.append(frozenset([patient, *(hashed_id("folder", one) for one in of_lesions)]))
        elif patient in names:
            patients.append(frozenset([names[patient], *of_lesions]))
        else:
            raise DataError(
                f"{root}: {PATIENTS} does not name everybody whom the set shows; run the "
                "synthesis again"
            )
    return Source(patches, patients)


def _set_patients(root: Path) -> dict[str, str] | None:
    """What the archive `folder` calls a patient -> what the source's archive does; None of a folder
    that is no set.
    """
    if not (root / PATIENTS).is_file():
        return None
    try:
        known = SetPatients.model_validate_json((root / PATIENTS).read_bytes())
    except (OSError, ValidationError):
        raise DataError(f"{root}: {PATIENTS} is damaged; run the synthesis again") from None
    if fault := key_fault(known.id_key):
        raise DataError(f"{root / PATIENTS}: {fault}")
    return {hashed_id("folder", patient): patient for patient in known.mammograms}


def _lesion_patients(root: Path) -> dict[str, list[str]]:
    """image_id -> whose lesions were set in, by metadata.csv."""
    if not (root / "metadata.csv").is_file():
        return {}
    with (root / "metadata.csv").open(encoding="utf-8-sig", newline="") as file:
        separator = max(",;\t", key=file.readline().count)
        file.seek(0)
        rows = [
            {(key or "").strip(): value for key, value in row.items()}
            for row in csv.DictReader(file, delimiter=separator)
        ]
    return {
        _image_id(row["file"]): (row.get("lesion_patient") or "").casefold().split()
        for row in rows
        if row.get("file")
    }


def _own_lesions(root: Path) -> set[str]:
    """Ids, as patches have them, of the real lesions that mammograms of a set had before, by
    annotations.json.
    """
    try:
        content = json.loads((root / "annotations.json").read_bytes())
        files = {image["id"]: _image_id(image["file_name"]) for image in content["images"]}
        of_images: dict[str, list[bool]] = {}
        for annotation in content["annotations"]:
            of_images.setdefault(files[annotation["image_id"]], []).append(
                annotation.get("synthetic", True)
            )
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise DataError(f"{root}: annotations.json is damaged; run the synthesis again") from None
    return {
        f"{image}#{number}"
        for image, flags in of_images.items()
        for number, flag in enumerate(flags)
        if not flag
    }


def _image_id(file: str) -> str:
    """What the archive `folder` calls an image."""
    return hashed_id(
        "folder", Path(file.strip().removeprefix("images/")).with_suffix("").as_posix()
    )


def draw(config: ReaderStudyConfig, found: Mapping[str, Source]) -> list[Case]:
    """The cases of a study: no patient in two of them, every system with the same number of either
    task, sides and truths balanced.

    Raises:
        DataError: There are too few patients.
    """
    random = np.random.default_rng(config.seed)
    each = config.pairs + config.ratings // 2
    wanted = {REAL: each * len(config.systems), **dict.fromkeys(config.systems, each)}
    taken = _nobody_twice(found, wanted, random)
    cases: list[Case] = []
    for system in config.systems:
        real, synthetic = ([taken[name].pop() for _ in range(each)] for name in (REAL, system))
        sides = random.permutation(np.repeat(["left", "right"], config.pairs // 2)).tolist()
        cases += [Case(0, "choice", system, side, real.pop(), synthetic.pop()) for side in sides]
        cases += [Case(0, "rating", system, "real", one, "") for one in real]
        cases += [Case(0, "rating", system, "synthetic", "", one) for one in synthetic]
    numbers = random.permutation(len(cases)) + 1
    numbered = [
        Case(int(number), *astuple(case)[1:]) for number, case in zip(numbers, cases, strict=True)
    ]
    return sorted(numbered, key=lambda case: case.number)


def _nobody_twice(
    found: Mapping[str, Source], wanted: Mapping[str, int], random: np.random.Generator
) -> dict[str, list[str]]:
    """Random patches of each source, as many as wanted and no patient in two of them: a
    whole-number programme, solved exactly.

    Returns:
        Ids by source, in random order.
    """
    items = [(name, row) for name, source in found.items() for row in range(len(source.patches))]
    everybody = sorted(
        {patient for source in found.values() for shown in source.patients for patient in shown}
    )
    patients = {patient: number for number, patient in enumerate(everybody)}
    names = list(found)
    shows = [
        (patients[patient], item)
        for item, (name, row) in enumerate(items)
        for patient in found[name].patients[row]
    ]
    belongs = [(names.index(name), item) for item, (name, _) in enumerate(items)]
    limits = [
        optimize.LinearConstraint(_incidence(shows, len(patients), len(items)), ub=1),
        optimize.LinearConstraint(
            _incidence(belongs, len(names), len(items)), ub=[wanted[name] for name in names]
        ),
    ]
    # one patch more is worth more than which ones they are
    gain = 1 + random.random(len(items)) / (2 * sum(wanted.values()))
    solved = optimize.milp(
        -gain,
        integrality=1,
        bounds=optimize.Bounds(0, 1),
        constraints=limits,
        options={"mip_rel_gap": 0},
    )
    taken: dict[str, list[str]] = {name: [] for name in found}
    for item in random.permutation(np.flatnonzero(np.round(solved.x))):
        name, row = items[item]
        taken[name].append(str(found[name].patches.ids[row]))
    missing = [
        f"{wanted[name] - len(ids)} of {wanted[name]} for {name}"
        for name, ids in taken.items()
        if len(ids) < wanted[name]
    ]
    if missing:
        raise DataError(
            f"no patient is shown twice, and so patients are missing: {', '.join(missing)}; take "
            "fewer pairs or ratings"
        )
    return taken


def _incidence(pairs: Sequence[tuple[int, int]], rows: int, cols: int) -> sparse.csr_array:
    """1 at each (row, col)."""
    places: NDArray[np.intp] = np.array(pairs, np.intp).reshape(-1, 2)
    return sparse.csr_array(
        (np.ones(len(places)), (places[:, 0], places[:, 1])), shape=(rows, cols)
    )


def pictures(cases: Sequence[Case], found: Mapping[str, Source]) -> dict[tuple[str, str], bytes]:
    """(source, id) -> PNG of every patch that is seen, of 8 bits and uncompressed, so that no
    length tells of its grain.

    Raises:
        DataError: One is no longer there.
    """
    rows = {
        name: {id_: row for row, id_ in enumerate(source.patches.ids.tolist())}
        for name, source in found.items()
    }
    shown: dict[tuple[str, str], bytes] = {}
    for name, patch in (one for case in cases for one in case.shown):
        if patch not in rows.get(name, {}):
            raise DataError(
                f"{name}: a patch that the cases show is not there any more; name a new database"
            )
        image = np.rint(found[name].patches.images[rows[name][patch]][..., 0] * 255).astype(
            np.uint8
        )
        shown[name, patch] = cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 0))[
            1
        ].tobytes()
    return shown


def digest(cases: Sequence[Case], shown: Mapping[tuple[str, str], bytes]) -> str:
    """A hash of cases and of what is seen of them."""
    content = hashlib.sha256(repr([astuple(case) for case in cases]).encode())
    for case in cases:
        for one in case.shown:
            content.update(shown[one])
    return content.hexdigest()

"""LPIPS, FID and KID of sets of patches against real patches, with intervals over patients.

The networks are those of the folder that TFMAMMO_WEIGHTS names, or downloaded, or files (of
`tfmammo pretrained convert`), or random ones ("none"), which the names of measures then say. A note
below every table names them with the SHA-256 of their weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from tfmammo.errors import ConfigError
from tfmammo.evaluation.comparison import EvaluationConfig
from tfmammo.evaluation.two_sample import Groups, Images, Masks, TwoSample, two_sample
from tfmammo.metrics import perceptual, resampling
from tfmammo.metrics.rows import Fact
from tfmammo.metrics.significance import Estimate
from tfmammo.metrics.summary import JACKKNIFE, Measure, count_sizes, list_comparisons
from tfmammo.nn import published

log = logging.getLogger(__name__)

MIN_SIZE = 32  # px
SET_MEASURES = {
    "lpips_pairs": Measure("LPIPS to other real patches", "", 1, 4),
    "fid": Measure("FID", "", 1, 1),
    "kid": Measure("KID x 1000", "", 1000, 2),
    "auc": Measure("distinguished from real patches, AUC", "", 1, 3),
}
LPIPS_MEASURES = ("lpips", "lpips_pairs")
INCEPTION_MEASURES = ("fid", "kid", "nearest_features", "copy")

Scores = dict[str, NDArray[np.float64]]
# rows of the patches -> one number of them
Statistic = Callable[[NDArray[np.intp]], float]


class PerceptualConfig(EvaluationConfig):
    """Models whose patches are compared with real ones, and the networks that look at them."""

    alexnet: str = "imagenet"
    """The backbone of LPIPS: "imagenet", a path, or "none"."""
    heads: str = "published"
    """The calibrated heads of LPIPS: "published" (the file in the folder that TFMAMMO_WEIGHTS
    names; without it as "none"), a path, or "none".
    """
    inception: str = "imagenet"
    """The network of FID, KID and nearest features: "imagenet" (the Inception of 2015-12-05 in the
    folder that TFMAMMO_WEIGHTS names; without it Keras's), a path, or "none"; see
    tfmammo.nn.pretrained.
    """
    folds: int = Field(default=5, ge=2)
    """Folds of the classifier that distinguishes generated patches from real ones; no more than
    groups of patients.
    """
    steps: PositiveInt = 200
    """Training steps of the classifier that distinguishes generated patches from real ones."""
    rows: PositiveInt = 6
    """Rows of each sheet: patches drawn by `seed`, and each model's best and worst, by LPIPS or by
    the seam of blended lesions.
    """

    def load_scorer(self) -> PerceptualScorer:
        """Load the networks."""
        if self.data.size < MIN_SIZE:
            raise ConfigError(
                f"data.size: LPIPS's network sees nothing in patches below {MIN_SIZE} px"
            )
        return PerceptualScorer.load(self.alexnet, self.heads, self.inception)

    def distinguish(
        self, images: Mapping[str, Images], masks: Mapping[str, Masks], groups: Groups, real: str
    ) -> dict[str, TwoSample]:
        """Let a classifier distinguish each set of n patches from the real ones, at up to 128 px.

        Args:
            images: Set -> float [n, s, s, 1] in [0, 1].
            masks: Set -> {0, 1} [n, s, s, 1].
            groups: Patients, or groups of patients who share patches, str [n] of all sets alike.
            real: The set of the real patches.

        Returns:
            Every other set -> result; empty, with a warning, where all patches share patients.
        """
        count = len(set(groups.tolist()))
        if count < 2:
            log.warning("all images share patients, so no classifier can be tested on unseen ones")
            return {}
        return {
            name: two_sample(
                images[real],
                images[name],
                groups,
                groups,
                masks[real],
                masks[name],
                folds=min(self.folds, count),
                seed=self.seed,
                size=min(128, self.data.size),
                steps=self.steps,
            )
            for name in images
            if name != real
        }


@dataclass(frozen=True, eq=False)
class PatchSample:
    """A set of patches to be compared with as many real ones.

    Attributes:
        images: float32 [n, s, s, 1] in [0, 1].
        features: Their Inception features.
        patient_ids: Patients, or those of the real patches that they were made of, str [n].
    """

    images: NDArray[np.float32]
    features: NDArray[np.float32]
    patient_ids: NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class PerceptualScorer:
    """The pretrained networks that score patches; see tfmammo.metrics.perceptual."""

    lpips: perceptual.LPIPS
    inception: perceptual.Inception

    @classmethod
    def load(cls, alexnet: str, heads: str, inception: str) -> PerceptualScorer:
        """Load the networks; each is named as in `PerceptualConfig`."""
        return cls(perceptual.LPIPS(alexnet, heads), perceptual.Inception(inception))

    @property
    def note(self) -> str:
        """What a table says of random networks and missing heads; "" where there is nothing."""
        notes = ", ".join(note for note in (self.lpips.note, self.inception.note) if note)
        return f"made with {notes}" if notes else ""

    def describe(self) -> tuple[str, ...]:
        """Return sentences that name the networks and their weights, for below a table."""
        backbone = self.lpips.source["AlexNet"]
        heads = self.lpips.source["heads"]
        inception = self.inception.source
        sentences = (
            f"LPIPS: {backbone} with {heads}.",
            f"FID, KID and nearest features: {inception}.",
        )
        if inception.sha256 == published.DIGESTS["inception"]:
            return sentences
        return (
            *sentences,
            "They compare with no published FID, which is by the Inception of 2015-12-05.",
        )

    def write_sources(self, path: Path) -> None:
        """Write the networks' weights as JSON: measure -> part -> title and SHA-256."""
        networks: dict[str, Mapping[str, published.Source]] = {
            "LPIPS": self.lpips.source,
            "FID, KID": {"Inception-v3": self.inception.source},
        }
        content: dict[str, Any] = {
            measures: {part: source._asdict() for part, source in parts.items()}
            for measures, parts in networks.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def mark_name(self, measure: str) -> str:
        """Return the measure's name, marked if its network is random or lacks calibrated heads."""
        note = ""
        if measure in LPIPS_MEASURES:
            note = self.lpips.note
        elif measure in INCEPTION_MEASURES:
            note = self.inception.note
        if not note:
            return measure
        return measure + ("_random" if "random" in note else "_without_heads")

    def mark_measures(self, measures: Mapping[str, Measure]) -> dict[str, Measure]:
        """Return the columns of a table with marked names and headings."""
        marked = {}
        for name, measure in measures.items():
            mark = self.mark_name(name).removeprefix(name).replace("_", " ").strip()
            heading = f"{measure.heading} ({mark})" if mark else measure.heading
            marked[self.mark_name(name)] = replace(measure, heading=heading)
        return marked

    def mark_scores(self, scores: Scores) -> Scores:
        """Return scores under their marked names."""
        return {self.mark_name(name): values for name, values in scores.items()}

    def make_statistics(
        self,
        real: PatchSample,
        sets: Mapping[str, PatchSample],
    ) -> dict[str, dict[str, Statistic]]:
        """Compare sets of n patches with the n real ones: measure -> set -> its statistic."""
        pairs: dict[str, Statistic] = {
            name: partial(
                _average_apart,
                self.lpips.matrix(real.images, patches.images),
                real.patient_ids,
                patches.patient_ids,
            )
            for name, patches in sets.items()
        }
        return {"lpips_pairs": pairs, **make_feature_statistics(real, sets)}

    def compare(
        self,
        statistics: Mapping[str, Mapping[str, Statistic]],
        patient_ids: NDArray[np.str_],
        measures: Mapping[str, Measure],
        config: EvaluationConfig,
        real: str,
    ) -> list[Fact]:
        """Compute whole sets' values with jackknife intervals, and differences between sets.

        Args:
            statistics: Measure -> set -> its statistic.
            patient_ids: str [n].
            measures: Measure -> how it is shown.
            config: The confidence level, and which sets are compared.
            real: The name of the real patches, which are compared with nothing.
        """
        facts = []
        sizes = count_sizes(patient_ids)
        about: dict[str, Any] = {"test": JACKKNIFE, **sizes}
        for name, sets in statistics.items():
            key = self.mark_name(name)
            measure = measures[name]
            estimate: Callable[..., Estimate] = resampling.jackknife
            if name == "auc":  # of patches of the same patients
                estimate = partial(resampling.jackknife_area, fewest=sizes["patients"])
            for model, statistic in sets.items():
                level = estimate(statistic, patient_ids, level=config.level)
                facts.append(measure.make_fact("means", model, key, level, **about))
            models = [model for model in sets if model != real]
            for model, other in list_comparisons(models, config.compare):
                subtract = partial(_subtract, sets[model], sets[other])
                change = resampling.jackknife(subtract, patient_ids, config.level)
                tested = {"against": other, "p": change.p, **about}
                facts.append(measure.make_fact("differences", model, key, change, **tested))
        return facts


def load_published() -> PerceptualScorer | None:
    """Load the published networks; None unless the folder in TFMAMMO_WEIGHTS has all of them."""
    if any(published.find(name) is None for name in ("alexnet", "LPIPS heads", "inception")):
        return None
    return PerceptualScorer.load("imagenet", "published", "imagenet")


def make_feature_statistics(
    real: PatchSample, sets: Mapping[str, PatchSample]
) -> dict[str, dict[str, Statistic]]:
    """Compare the features of sets of patches with those of the real ones: "fid" and "kid"."""
    statistics: dict[str, dict[str, Statistic]] = {"fid": {}, "kid": {}}
    for name, patches in sets.items():
        features = real.features, patches.features
        patients = real.patient_ids, patches.patient_ids
        statistics["fid"][name] = partial(_measure_rows, perceptual.fid, features)
        statistics["kid"][name] = partial(_measure_rows, perceptual.mmd, (*features, *patients))
    return statistics


def average_statistics(statistics: Sequence[Statistic]) -> Statistic:
    """Make the statistic that is the mean of those of a model's runs."""
    return lambda rows: float(np.mean([statistic(rows) for statistic in statistics]))


def _measure_rows(
    measure: Callable[..., float], values: tuple[NDArray[Any], ...], rows: NDArray[np.intp]
) -> float:
    return measure(*(of_patches[rows] for of_patches in values)) if len(rows) > 1 else np.nan


def _average_apart(
    matrix: NDArray[np.float64],
    patients: NDArray[np.str_],
    others: NDArray[np.str_],
    rows: NDArray[np.intp],
) -> float:
    return perceptual.average_apart(matrix[np.ix_(rows, rows)], patients[rows], others[rows])


def _subtract(statistic: Statistic, reference: Statistic, rows: NDArray[np.intp]) -> float:
    return statistic(rows) - reference(rows)

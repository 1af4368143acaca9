"""A candidate against the best version of a registered model: the same patches, a paired
test, a verdict and its audit.

Both are run on patches of patients that neither was trained on, as their cards say. The alias
"best" moves only if the mean gain is min_gain at least and a paired test, which flips whole
patients, gives a two-sided p below alpha. Fewer than six patients refuse every candidate. Each
version that was judged on the same patches before is one more chance of a false promotion, so p is
multiplied by their number (Bonferroni's correction). Where no version is the best yet, the
candidate becomes it, unjudged. Tags of the versions keep the audit, all named promotion.KEY:

    decision            first, promoted or refused; reason: in words; against: the version that was
    the best; date: UTC
    metric, gain, interval, p, comparisons, patients, images, data (fingerprint of the patches),
    archive, min_gain, alpha: where one
                        was judged; p is not yet multiplied by comparisons
    former, since       of a version that a promotion made the best: the best before it, the moment
    demoted_by, rolled_back   of a version that a promotion or a rollback took the alias from: what
    got it; when it was rolled back

A training gives the alias to its own best checkpoint only where no version has it, or an earlier
one of the same run, and leaves no such tag. A checkpoint that was kept as the best was chosen on
its held-out patients, and its numbers on these are too good: other mammograms are the fairer
judges.

On an SQLite store no two promotions can move the alias at once. A server has no such lock: there
the alias is read again right before it is moved, which leaves some milliseconds; so does the move
of a training on either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from tfmammo import config as configuration
from tfmammo import datasets
from tfmammo.archives import archive_name
from tfmammo.config import DataConfig, Frozen
from tfmammo.data.patches import Patches
from tfmammo.errors import ConfigError, DataError, ExportError, TrackingError
from tfmammo.evaluation import comparison
from tfmammo.evaluation.comparison import Network
from tfmammo.metrics import segmentation, synthesis
from tfmammo.metrics.segmentation import Paired, paired_test
from tfmammo.metrics.significance import FEWEST_PATIENTS, smallest_p
from tfmammo.tracking import store
from tfmammo.tracking.store import shown

ALIAS = "best"
PREFIX = "promotion."
# of what leads from mask to image; 1: more is better. All others: from image to mask
PAINTING = {"ssim": 1, "l1": -1}
NUMBERS = (
    "gain",
    "interval",
    "p",
    "comparisons",
    "patients",
    "images",
    "data",
    "archive",
    "metric",
    "min_gain",
    "alpha",
)  # tags of a comparison

Decision = Literal["first", "promoted", "refused", "already best"]


class PromotionConfig(Frozen):
    """What is compared, on what, and what it takes to win."""

    model: str = Field(pattern=r"^\w[\w .-]*$")
    """A registered model."""
    candidate: PositiveInt | None = None
    """Its version; None: the newest."""
    metric: Literal["dice", "jaccard", "accuracy", "mcc", "ssim", "l1"] = "dice"
    """Of metrics.segmentation or metrics.synthesis, the mean over patches."""
    min_gain: float = Field(default=0.005, ge=0)
    """The least gain, in the metric's unit (of l1: how much less)."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """P must lie below."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """A pixel is mass from this probability on."""
    data: dict[str, Any] = {}
    """The patches, as DataConfig; every key that is not given is taken from the candidate's card.
    """
    tracking_uri: str | None = None
    """The store; None: the environment's."""
    samples: PositiveInt = 10_000
    """Of `paired_test`."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of `paired_test`."""
    seed: NonNegativeInt = 0
    """Of `paired_test`."""


@dataclass(frozen=True)
class Registered:
    """A registered model as its store knows it.

    Attributes:
        aliases: Alias -> version.
        versions: Version -> tags, the newest first.
    """

    name: str
    aliases: dict[str, int]
    versions: dict[int, dict[str, str]]


@dataclass(frozen=True)
class Judged:
    """Two versions on the same patches.

    Attributes:
        candidate: Means.
        best: Means.
        gain: Positive where the candidate is better, whatever the metric.
        comparisons: Candidates judged on these patches, with this one.
    """

    candidate: float
    best: float
    gain: Paired
    patients: int
    images: int
    archive: str
    fingerprint: str
    comparisons: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate, and why.

    Attributes:
        best: The version that it was up against.
        judged: None where nothing was compared.
    """

    decision: Decision
    reason: str
    candidate: int
    best: int | None
    judged: Judged | None = None


def registered(client: Any, uri: str, name: str) -> Registered:
    """A model by its name.

    Raises:
        TrackingError: There is none.
    """
    for found in client.search_registered_models(f"name = '{name}'"):
        versions = {
            int(version.version): dict(version.tags)
            for version in client.search_model_versions(f"name = '{name}'")
        }
        aliases = {alias: int(version) for alias, version in found.aliases.items()}
        return Registered(name, aliases, dict(sorted(versions.items(), reverse=True)))
    raise TrackingError(f"models:/{name}: no such registered model in {shown(uri)}")


def promote(config: PromotionConfig, dry_run: bool = False) -> Outcome:
    """Compare a candidate with the best version, move the alias if it wins, and leave an audit in
    tags.

    Raises:
        TrackingError: The store, the model or a version is not there, or can't be judged by the
            metric.
        ConfigError: The data can't be used, or holds no patient that is new to both.
        ArchiveError: The data can't be used, or holds no patient that is new to both.
        DataError: The data can't be used, or holds no patient that is new to both.
    """
    uri = store.store_uri(config.tracking_uri)
    with store.registry(uri) as client:
        model = registered(client, uri, config.model)
    number = config.candidate or max(model.versions, default=1)
    best = model.aliases.get(ALIAS)
    if number not in model.versions:
        there = ", ".join(map(str, sorted(model.versions))) or "none"
        raise TrackingError(
            f"models:/{model.name}/{number}: no such version in {shown(uri)}; there: {there}"
        )
    if best == number:
        return _already(model, number)
    candidate = _network(config, number, uri)
    if best is None:
        outcome = Outcome("first", "no version was the best before", number, None)
    else:
        judged = judge(candidate, _network(config, best, uri), config)
        judged = replace(judged, comparisons=1 + _earlier(model, number, judged.fingerprint))
        outcome = Outcome(*decide(judged, config), number, best, judged)
    return outcome if dry_run else _settle(outcome, config, uri)


def judge(candidate: Network, best: Network, config: PromotionConfig) -> Judged:
    """Both on all patches of patients that neither was trained on; see `promote` for what it
    raises.
    """
    data = _data(config, candidate)
    comparison.warn_of_other_crops((best, candidate), data)
    patches = datasets.all_patches(data)
    new = np.flatnonzero(candidate.unseen(patches.patient_ids) & best.unseen(patches.patient_ids))
    if not len(new):
        raise DataError(
            f"{candidate.handle} and {best.handle}: every patient of {archive_name(data)} was "
            "trained on by one of them or both; "
            "data.name and data.root can name other mammograms"
        )
    patches = patches.take(new)
    sign = PAINTING.get(config.metric, 1)
    ours, theirs = (_scores(network, patches, config) for network in (candidate, best))
    gain = paired_test(
        sign * ours, sign * theirs, patches.patient_ids, config.samples, config.seed, config.level
    )
    counts = len(set(patches.patient_ids.tolist())), len(patches)
    return Judged(
        float(ours.mean()),
        float(theirs.mean()),
        gain,
        *counts,
        archive_name(data),
        patches.fingerprint(),
    )


def decide(judged: Judged, config: PromotionConfig) -> tuple[Decision, str]:
    """Whether the candidate wins, and the first reason if not."""
    gain = judged.gain
    least = smallest_p(judged.patients, judged.comparisons, config.samples)
    if gain.difference <= 0:
        return "refused", f"it is no better: a gain of {gain.difference:+.4g}"
    if gain.difference < config.min_gain:
        return "refused", f"a gain of {gain.difference:+.4g} is less than {config.min_gain:g}"
    if judged.patients < FEWEST_PATIENTS:
        return (
            "refused",
            f"{judged.patients} patients are fewer than {FEWEST_PATIENTS}, and their p would be "
            f"{least:.3g} at least",
        )
    p = min(1.0, judged.comparisons * gain.p)
    said = f"p = {p:.3g}" + (
        f" after {judged.comparisons} comparisons on these patches"
        if judged.comparisons > 1
        else ""
    )
    if p >= config.alpha:
        few = (
            f", and {judged.patients} patients can't give less than {least:.3g}"
            if least >= config.alpha
            else ""
        )
        return "refused", f"{said} is not below {config.alpha:g}{few}"
    return "promoted", f"a gain of {gain.difference:+.4g}, {said}"


def rollback(name: str, tracking_uri: str | None = None) -> tuple[int, int]:
    """Move the alias back: before the last promotion or, if the best version came by none, to the
    last that did.

    Returns:
        The versions that it leaves and comes to.

    Raises:
        TrackingError: The store or the model is not there, no version is the best, or no tag names
            a former one.
    """
    uri = store.store_uri(tracking_uri)
    with store.registry(uri) as client:
        model = registered(client, uri, name)
        best = model.aliases.get(ALIAS)
        if best is None:
            raise TrackingError(
                f"models:/{name}@{ALIAS}: no version in {shown(uri)} has this alias"
            )
        since = {
            tags[f"{PREFIX}since"]: number
            for number, tags in model.versions.items()
            if f"{PREFIX}since" in tags and number != best
        }
        former = int(model.versions[best].get(f"{PREFIX}former", since[max(since)] if since else 0))
        if former not in model.versions:
            raise TrackingError(
                f"models:/{name}@{ALIAS}: version {best} in {shown(uri)} has no tag of a former "
                "one that is still there"
            )
        client.set_registered_model_alias(name, ALIAS, str(former))
        _tag(
            client,
            model,
            best,
            {"former": None, "since": None, "demoted_by": former, "rolled_back": _now()},
        )
        _tag(client, model, former, {"since": _now(), "demoted_by": None, "rolled_back": None})
    return best, former


def _earlier(model: Registered, number: int, fingerprint: str) -> int:
    """How many other versions were judged on the same patches."""
    others = [tags for version, tags in model.versions.items() if version != number]
    return sum(tags.get(f"{PREFIX}data") == fingerprint for tags in others)


def _already(model: Registered, number: int) -> Outcome:
    unknown = "" if f"{PREFIX}since" in model.versions[number] else "; no promotion is on record"
    return Outcome("already best", f"nothing is done{unknown}", number, number)


def _network(config: PromotionConfig, number: int, uri: str) -> Network:
    """A version's function for the metric; that its card names its patients is known then."""
    handle = f"models:/{config.model}/{number}"
    with _naming(handle):
        network = comparison.open_network(
            handle, *(("mask", "image") if config.metric in PAINTING else ("image", "mask")), uri
        )
    if "train_patients" not in network.card:
        raise TrackingError(
            f"{handle}: its card names no patients of its training, so none is known to be new to "
            "it"
        )
    return network


def _data(config: PromotionConfig, candidate: Network) -> DataConfig:
    """What the candidate's card says, without what only a training has, under what the
    config says.
    """
    known = candidate.card.get("config", {}).get("data", {}) | {"added": {}, "split_file": None}
    if config.data.keys() & {"name", "root"}:
        known["records"] = None  # which would be read in their place
    try:
        return DataConfig.model_validate(_merged(known, config.data))
    except ValidationError as error:
        raise ConfigError(
            f"data, with what the card of {candidate.handle} says: {configuration.describe(error)}"
        ) from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}


def _scores(network: Network, patches: Patches, config: PromotionConfig) -> NDArray[np.float64]:
    with _naming(network.handle):
        if config.metric in PAINTING:
            images = network.run("mask", "image", patches.masks.astype(np.float32))
            return synthesis.per_image(patches.images, images, patches.masks)[config.metric]
        masks = network.run("image", "mask", patches.images)
        return segmentation.per_image(patches.masks, masks, config.threshold)[config.metric]


@contextmanager
def _naming(handle: str) -> Iterator[None]:
    """An export's fault names its folder; here it is a version's."""
    try:
        yield
    except ExportError as error:
        raise TrackingError(f"{handle}: {error}") from error


def _settle(outcome: Outcome, config: PromotionConfig, uri: str) -> Outcome:
    """Move the alias, if it still is where the candidate was compared with it, and
    write the audit.
    """
    number = outcome.candidate
    best = outcome.best
    with store.registry(uri) as client:
        model = registered(client, uri, config.model)
        now = model.aliases.get(ALIAS)
        if now == number:  # another promotion of the same version, whose audit stays
            return _already(model, number)
        if now != best:
            reason = (
                f"meanwhile the alias {ALIAS} moved from version {best or '-'} to version "
                f"{now or '-'}"
            )
            outcome = Outcome("refused", reason, number, best, outcome.judged)
        moves: dict[str, Any] = {}
        if outcome.decision != "refused":
            # The alias first: the audit may miss a move, but never tells of one that was not made.
            client.set_registered_model_alias(config.model, ALIAS, str(number))
            moves = {"former": best, "since": _now(), "demoted_by": None, "rolled_back": None}
            if best is not None:
                _tag(client, model, best, {"demoted_by": number, "since": None})
        _tag(client, model, number, _verdict(outcome, config) | moves)
    return outcome


def _verdict(outcome: Outcome, config: PromotionConfig) -> dict[str, Any]:
    """Tags; None: none, and one of an earlier verdict goes."""
    judged = outcome.judged
    numbers: dict[str, Any] = dict.fromkeys(NUMBERS)
    if judged:
        gain = judged.gain
        numbers |= {"gain": f"{gain.difference:.6g}", "comparisons": judged.comparisons}
        if np.isfinite(gain.p):
            numbers |= {"interval": f"[{gain.low:.6g}, {gain.high:.6g}]", "p": f"{gain.p:.6g}"}
        numbers |= {
            "patients": judged.patients,
            "images": judged.images,
            "data": judged.fingerprint,
            "archive": judged.archive,
        }
        numbers |= {"metric": config.metric, "min_gain": config.min_gain, "alpha": config.alpha}
    return (
        {"decision": outcome.decision, "reason": outcome.reason, "against": outcome.best}
        | numbers
        | {"date": _now()}
    )


def _tag(client: Any, model: Registered, number: int, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if value is not None:
            client.set_model_version_tag(model.name, str(number), f"{PREFIX}{key}", str(value))
        elif f"{PREFIX}{key}" in model.versions.get(number, {}):
            client.delete_model_version_tag(model.name, str(number), f"{PREFIX}{key}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

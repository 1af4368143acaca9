"""Promotion: compare a candidate with the best version of a registered model, and move the alias.

Both versions are run on patches of patients that neither was trained on according to their cards.
The alias "best" moves only if the mean gain is at least min_gain and a paired test, which flips
whole patients, gives a two-sided p-value below alpha. With fewer than six patients every candidate
is refused. Each version that was compared on the same patches before is one more chance of a false
promotion, so p is multiplied by their number (Bonferroni's correction). If no version has the
alias, the candidate gets it without a comparison.

Tags of the versions record the decisions. All are named promotion.KEY:

    every candidate     decision (first, promoted or refused), reason (in words), against (the best
                        version before), date (UTC)
    after a comparison  metric, gain, interval, p (not yet multiplied by comparisons), comparisons,
                        patients, images, data (fingerprint of the patches), archive, min_gain,
                        alpha
    promoted versions   former (the best version before), since (the moment)

One tag of the model for each set of patches, promotion.compared.DATA, lists the versions that were
compared on it. It outlasts the versions and their later decisions.

A training run gives the alias to its own best checkpoint only if no version has it, or an earlier
one of the same run, and sets no such tag. That checkpoint was selected on its held-out patients, so
its numbers on them are too good. Other mammograms are a fairer test.

On an SQLite store, two promotions can't move the alias at the same time. A server has no such lock:
the alias is read again right before the move, which leaves a gap of milliseconds. A training run
leaves the same gap on either store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from tfmammo.config import Statistics
from tfmammo.data import datasets
from tfmammo.data.patches import Patches
from tfmammo.errors import DataError, ExportError, TrackingError
from tfmammo.evaluation import networks
from tfmammo.evaluation.networks import Network
from tfmammo.metrics import segmentation, synthesis
from tfmammo.metrics.resampling import paired_test
from tfmammo.metrics.significance import FEWEST_PATIENTS, Estimate, smallest_p
from tfmammo.tracking import store
from tfmammo.tracking.store import redact

ALIAS = "best"
PREFIX = "promotion."
ALIAS_TAGS = ("former", "since")  # a later decision leaves them
COMPARED = f"{PREFIX}compared."  # and a fingerprint: the model's tag of the versions compared on it
# Metrics of networks from mask to image: 1 if higher is better, else -1. All others are of networks
# from image to mask.
SYNTHESIS_METRICS = {"ssim": 1, "l1": -1}

Decision = Literal["first", "promoted", "refused", "already best"]


class PromotionConfig(Statistics):
    """The versions to compare, the patches, and the conditions of a promotion."""

    model: str = Field(pattern=r"^\w[\w .-]*$")
    """Name of the registered model."""
    candidate: PositiveInt | None = None
    """Version to compare with the best one; None: the newest."""
    metric: Literal["dice", "jaccard", "accuracy", "mcc", "ssim", "l1"] = "dice"
    """Metric of metrics.segmentation or metrics.synthesis, averaged over patches."""
    min_gain: float = Field(default=0.005, ge=0)
    """Least gain for a promotion, in the metric's unit (for l1: the least decrease)."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """A promotion needs a p-value below this."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """A pixel is mass from this probability on."""
    data: dict[str, Any] = {}
    """Keys of DataConfig that define the patches; the candidate's card gives the others."""
    audit: Literal["none", "no_leak", "passed"] = "none"
    """Verdict required of the candidate's memory audit (`tfmammo audit`): none, "undecided" or
    better, or "passed".
    """
    tracking_uri: str | None = None
    """MLflow's store; None: the environment's."""


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model as its store describes it."""

    name: str
    aliases: dict[str, int]  # alias -> version
    versions: dict[int, dict[str, str]]  # version -> tags, newest first
    tags: dict[str, str]  # of the model itself


@dataclass(frozen=True)
class Evaluation:
    """A comparison of two versions on the same patches."""

    candidate: float  # mean of the metric
    best: float
    gain: Estimate  # positive if the candidate is better, for any metric
    patients: int
    images: int
    archive: str
    fingerprint: str  # of the patches
    comparisons: int = 1  # candidates compared on these patches, including this one


@dataclass(frozen=True)
class Outcome:
    """The decision on a candidate."""

    decision: Decision
    reason: str
    candidate: int  # version
    best: int | None  # the version that it was compared with
    evaluation: Evaluation | None = None  # None: nothing was compared


def find_model(client: Any, uri: str, name: str) -> RegisteredModel:
    """Find a registered model by its name; `uri` is the store, for the error."""
    for model in client.search_registered_models(f"name = '{name}'"):
        versions = {
            int(version.version): dict(version.tags)
            for version in client.search_model_versions(f"name = '{name}'")
        }
        aliases = {alias: int(version) for alias, version in model.aliases.items()}
        newest_first = dict(sorted(versions.items(), reverse=True))
        return RegisteredModel(name, aliases, newest_first, dict(model.tags))
    raise TrackingError(f"models:/{name}: no such registered model in {redact(uri)}")


def promote(config: PromotionConfig, dry_run: bool = False) -> Outcome:
    """Compare a candidate with the best version, move the alias if it wins, and set the tags.

    A dry run compares, and changes neither alias nor tags.
    """
    uri = store.store_uri(config.tracking_uri)
    with store.open_registry(uri) as client:
        model = find_model(client, uri, config.model)
    number = config.candidate or max(model.versions, default=1)
    best = model.aliases.get(ALIAS)
    if number not in model.versions:
        versions = ", ".join(map(str, sorted(model.versions))) or "none"
        raise TrackingError(
            f"models:/{model.name}/{number}: no such version in {redact(uri)}; it has: {versions}"
        )
    if best == number:
        return _keep_best(model, number)
    candidate = _open_version(config, number, uri)
    if reason := find_audit_fault(config, model.versions[number], candidate.card):
        outcome = Outcome("refused", reason, number, best)
    elif best is None:
        outcome = Outcome("first", "no version had the alias", number, None)
    else:
        evaluation = evaluate(candidate, _open_version(config, best, uri), config)
        compared = {number, *_read_compared(model, evaluation.fingerprint)}
        evaluation = replace(evaluation, comparisons=len(compared))
        outcome = Outcome(*decide(evaluation, config), number, best, evaluation)
    return outcome if dry_run else _apply(outcome, config, uri)


def _read_compared(model: RegisteredModel, fingerprint: str) -> set[int]:
    """Read which versions were compared on the patches of a fingerprint."""
    return set(map(int, model.tags.get(f"{COMPARED}{fingerprint}", "").split()))


def find_audit_fault(
    config: PromotionConfig, tags: Mapping[str, str], card: Mapping[str, Any]
) -> str | None:
    """Say why a version's audit does not suffice; None if it does.

    Its tags have an audit of the version itself, its card one before it was registered.
    """
    if config.audit == "none":
        return None
    verdict = tags.get("audit.verdict") or card.get("audit", {}).get("verdict")
    if verdict is None:
        return f"audit={config.audit} requires a memory audit, and none was made"
    if verdict == "passed" or (config.audit == "no_leak" and verdict == "undecided"):
        return None
    return f"audit={config.audit} is required, and the audit's verdict is: {verdict}"


def evaluate(candidate: Network, best: Network, config: PromotionConfig) -> Evaluation:
    """Evaluate both versions on all patches of patients that neither was trained on."""
    data = candidate.merge_data(config.data)
    networks.check_crops((best, candidate), data)
    patches = datasets.load_all_patches(data)
    new = np.flatnonzero(
        candidate.find_unseen(patches.patient_ids) & best.find_unseen(patches.patient_ids)
    )
    if not len(new):
        raise DataError(
            f"{candidate.uri} and {best.uri}: every patient of {data.archive_name} was in the "
            "training data of one of them or both; set data.name and data.root to other "
            "mammograms"
        )
    patches = patches.take(new)
    sign = SYNTHESIS_METRICS.get(config.metric, 1)
    ours, its = (sign * _scores(network, patches, config) for network in (candidate, best))
    return Evaluation(
        candidate=sign * float(ours.mean()),
        best=sign * float(its.mean()),
        gain=paired_test(ours, its, patches.patient_ids, *config.draws),
        patients=len(set(patches.patient_ids.tolist())),
        images=len(patches),
        archive=data.archive_name,
        fingerprint=patches.fingerprint(),
    )


def decide(evaluation: Evaluation, config: PromotionConfig) -> tuple[Decision, str]:
    """Decide whether the candidate wins; if not, return the first reason."""
    gain = evaluation.gain
    patients = evaluation.patients
    comparisons = evaluation.comparisons
    least = smallest_p(patients, comparisons, config.samples)
    if gain.value <= 0:
        return "refused", f"it is no better: a gain of {gain.value:+.4g}"
    if gain.value < config.min_gain:
        return "refused", f"a gain of {gain.value:+.4g} is less than {config.min_gain:g}"
    if patients < FEWEST_PATIENTS:
        return (
            "refused",
            f"{patients} patients are fewer than {FEWEST_PATIENTS}; their p-value would be at "
            f"least {least:.3g}",
        )
    p = min(1.0, comparisons * gain.p)
    p_text = f"p = {p:.3g}"
    if comparisons > 1:
        p_text += f" after {comparisons} comparisons on these patches"
    if p < config.alpha:
        return "promoted", f"a gain of {gain.value:+.4g}, {p_text}"
    reason = f"{p_text} is not below {config.alpha:g}"
    if least >= config.alpha:
        reason += f", and {patients} patients can't give less than {least:.3g}"
    return "refused", reason


def rollback(name: str, tracking_uri: str | None = None) -> tuple[int, int]:
    """Move the alias back to the version that had it before the last promotion.

    If the best version got the alias without a promotion, the alias moves to the version that was
    promoted last. The version that loses it and the one that gets it are returned.
    """
    uri = store.store_uri(tracking_uri)
    with store.open_registry(uri) as client:
        model = find_model(client, uri, name)
        best = model.aliases.get(ALIAS)
        if best is None:
            raise TrackingError(
                f"models:/{name}@{ALIAS}: no version in {redact(uri)} has this alias"
            )
        promoted = {
            tags[f"{PREFIX}since"]: number
            for number, tags in model.versions.items()
            if f"{PREFIX}since" in tags and number != best
        }
        last = promoted[max(promoted)] if promoted else 0
        former = int(model.versions[best].get(f"{PREFIX}former", last))
        if former not in model.versions:
            raise TrackingError(
                f"models:/{name}@{ALIAS}: version {best} in {redact(uri)} has no tag of a former "
                "version that still exists"
            )
        client.set_registered_model_alias(name, ALIAS, str(former))
        _set_tags(client, model, best, {"former": None, "since": None})
        _set_tags(client, model, former, {"since": _now()})
    return best, former


def _keep_best(model: RegisteredModel, number: int) -> Outcome:
    unknown = "" if f"{PREFIX}since" in model.versions[number] else "; no promotion is on record"
    return Outcome("already best", f"nothing changes{unknown}", number, number)


def _open_version(config: PromotionConfig, number: int, tracking_uri: str) -> Network:
    """Open a version's function for the metric; its card must name its patients."""
    model_uri = f"models:/{config.model}/{number}"
    direction = ("mask", "image") if config.metric in SYNTHESIS_METRICS else ("image", "mask")
    with _naming_version(model_uri):
        network = networks.open_network(model_uri, *direction, tracking_uri)
    if "train_patients" not in network.card:
        raise TrackingError(
            f"{model_uri}: its card does not name its training patients, so no patient is known "
            "to be new to it"
        )
    return network


def _scores(network: Network, patches: Patches, config: PromotionConfig) -> NDArray[np.float64]:
    """Compute the metric of each patch."""
    with _naming_version(network.uri):
        if config.metric in SYNTHESIS_METRICS:
            images = network.run("mask", "image", patches.masks.astype(np.float32))
            return synthesis.per_image(patches.images, images, patches.masks)[config.metric]
        masks = network.run("image", "mask", patches.images)
        return segmentation.per_image(patches.masks, masks, config.threshold)[config.metric]


@contextmanager
def _naming_version(model_uri: str) -> Iterator[None]:
    """Prefix errors of an export, which name its folder, with the version."""
    try:
        yield
    except ExportError as error:
        said = str(error).removeprefix(f"{model_uri}: ")
        raise TrackingError(f"{model_uri}: {said}") from error


def _apply(outcome: Outcome, config: PromotionConfig, uri: str) -> Outcome:
    """Move the alias, unless it has moved since the comparison, and set the tags."""
    number, best = outcome.candidate, outcome.best
    with store.open_registry(uri) as client:
        model = find_model(client, uri, config.model)
        now = model.aliases.get(ALIAS)
        if now == number:  # another promotion of the same version, with its own tags
            return _keep_best(model, number)
        if now != best:
            reason = (
                f"meanwhile the alias {ALIAS} moved from version {best or '-'} to version "
                f"{now or '-'}"
            )
            outcome = replace(outcome, decision="refused", reason=reason)
        if outcome.evaluation:  # whatever was decided
            fingerprint = outcome.evaluation.fingerprint
            compared = sorted({number, *_read_compared(model, fingerprint)})
            listed = " ".join(map(str, compared))
            client.set_registered_model_tag(model.name, f"{COMPARED}{fingerprint}", listed)
        promotion: dict[str, Any] = {}
        if outcome.decision != "refused":
            # The alias moves first: tags may lack a move, but never state one that was not made.
            client.set_registered_model_alias(config.model, ALIAS, str(number))
            promotion = {"former": best, "since": _now()}
            if best is not None:
                _set_tags(client, model, best, {"since": None})
        earlier = [
            key.removeprefix(PREFIX)
            for key in model.versions.get(number, {})
            if key.startswith(PREFIX)
        ]
        outdated = dict.fromkeys(key for key in earlier if key not in ALIAS_TAGS)
        _set_tags(client, model, number, outdated | _describe(outcome, config) | promotion)
    return outcome


def _describe(outcome: Outcome, config: PromotionConfig) -> dict[str, Any]:
    """Make the tags of a decision; None is no tag."""
    tags = {
        "decision": outcome.decision,
        "reason": outcome.reason,
        "against": outcome.best,
        "date": _now(),
    }
    evaluation = outcome.evaluation
    if not evaluation:
        return tags
    gain = evaluation.gain
    has_interval = np.isfinite(gain.p)
    return tags | {
        "gain": f"{gain.value:.6g}",
        "interval": f"[{gain.low:.6g}, {gain.high:.6g}]" if has_interval else None,
        "p": f"{gain.p:.6g}" if has_interval else None,
        "comparisons": evaluation.comparisons,
        "patients": evaluation.patients,
        "images": evaluation.images,
        "data": evaluation.fingerprint,
        "archive": evaluation.archive,
        "metric": config.metric,
        "min_gain": config.min_gain,
        "alpha": config.alpha,
    }


def _set_tags(client: Any, model: RegisteredModel, number: int, values: Mapping[str, Any]) -> None:
    """Set the tags of a version; None deletes a tag."""
    for key, value in values.items():
        if value is not None:
            client.set_model_version_tag(model.name, str(number), f"{PREFIX}{key}", str(value))
        elif f"{PREFIX}{key}" in model.versions.get(number, {}):
            client.delete_model_version_tag(model.name, str(number), f"{PREFIX}{key}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

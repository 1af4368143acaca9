"""A whole audit: patches, attacks, verdict, tables, picture, card, run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.apps.audit import verdict as verdicts
from tfmammo.apps.audit.attacks import (
    Attack,
    AuditConfig,
    Sides,
    count_attacks,
    draw_sides,
    run_attacks,
)
from tfmammo.apps.audit.verdict import Verdict
from tfmammo.data import datasets
from tfmammo.evaluation.networks import open_first
from tfmammo.evaluation.report import EXPERIMENT, write_markdown
from tfmammo.metrics import perceptual
from tfmammo.metrics.rows import Fact, write_facts
from tfmammo.metrics.significance import Estimate
from tfmammo.metrics.summary import Measure, Table
from tfmammo.tracking import runs
from tfmammo.training import image_grid

log = logging.getLogger(__name__)
_SUCCESS = Measure("success", "", 1, 3).show
_RATE = Measure("TPR at 1 % FPR", "%", 100, 1).show
JOINT = "simultaneous intervals by patient"
SOURCES = ("tri_label", "mask")  # inputs of a generator that is audited; the first is preferred


def audit(config: AuditConfig, output: Path) -> list[Table]:
    """Audit a generator, and write the verdict into its card.

    The output has table.md, rows.csv, audit.json and nearest.png.
    """
    network = open_first(config.model, SOURCES, "image", config.tracking_uri)
    place = ""
    if config.write_card:
        place = verdicts.find_place(config.model, network.folder, config.tracking_uri)
    data = network.merge_data(config.data)
    sides = draw_sides(network, datasets.load_all_patches(data), config)
    level = 1 - (1 - config.level) / count_attacks(config)
    attacks = run_attacks(network, sides, config, level)
    verdict = verdicts.decide(attacks, config.limit)
    members = np.unique(sides.patients[sides.is_member])
    facts = {
        "archive": data.archive_name,
        "patches": int(sides.is_member.sum()),
        "patients": [len(members), len(np.unique(sides.patients)) - len(members)],
        "limit": config.limit,
        "level": config.level,
    }
    record = verdicts.make_record(verdict, attacks, facts)
    tables = [tabulate(attacks, verdict, config, facts, str(network.card["name"]))]
    output.mkdir(parents=True, exist_ok=True)
    write_markdown(output / "table.md", tables)
    write_facts(output / "rows.csv", list_facts(attacks, sides, str(network.card["name"])))
    (output / "audit.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    write_nearest(sides, config.rows, output / "nearest.png")
    if place:
        verdicts.write(record, place, config.tracking_uri)
        log.info("the verdict, %s, is written into %s", verdict.decision, place)
    if config.tracking_uri:
        metrics = {f"audit/{attack.name}": attack.success.value for attack in attacks}
        metrics["audit/bound"] = verdict.bound
        parameters = config.model_dump(mode="json") | {"verdict": verdict.decision}
        runs.log_folder(output, config.tracking_uri, EXPERIMENT, parameters, metrics)
    return tables


def list_facts(attacks: Sequence[Attack], sides: Sides, model: str) -> list[Fact]:
    """List success and, where it was measured, the TPR at 1 % FPR of each attack."""
    patients, images = len(np.unique(sides.patients)), len(sides.patients)
    facts = []
    for attack in attacks:
        name = ("attacks", f"attack={attack.name}", model, "")
        numbers = attack.success.value, attack.success.low, attack.success.high
        facts.append(Fact(*name, "success", "", *numbers, patients, images, JOINT))
        if rate := attack.rate:
            numbers = 100 * rate.value, 100 * rate.low, 100 * rate.high
            facts.append(Fact(*name, "tpr@1%fpr", "%", *numbers))
    return facts


def _format_rate(rate: Estimate) -> str:
    interval = f" [{_RATE(rate.low)}, {_RATE(rate.high)}]" if np.isfinite(rate.low) else ""
    return _RATE(rate.value) + interval


def tabulate(
    attacks: Sequence[Attack],
    verdict: Verdict,
    config: AuditConfig,
    facts: dict[str, Any],
    model: str,
) -> Table:
    """Tabulate all attacks, with the name of the model and the verdict as heading."""
    body = [
        [
            attack.name,
            *map(_SUCCESS, (attack.success.value, attack.success.low, attack.success.high)),
            _format_rate(attack.rate) if attack.rate else "-",
            attack.details,
        ]
        for attack in attacks
    ]
    header = ["attack", "success", "low", "high", "TPR at 1 % FPR, %", "in words"]
    title = (
        f"{model}: {verdict.decision}, {verdict.reason} ({facts['archive']}, {facts['patches']} "
        f"patches of {facts['patients'][0]} training patients, as many of {facts['patients'][1]} "
        "unseen ones)"
    )
    notes = [
        "Success is the AUC of training against unseen patches; 0.5 means no memory.",
        f"The intervals of success hold simultaneously at {100 * config.level:g} %, by patient.",
    ]
    names = {attack.name for attack in attacks}
    if "discriminator" not in names:
        notes.append("The export has no discriminator, so that attack was not tried.")
    if "patient" not in names:
        notes.append("Too few patients have two patches, so the attack patient was not tried.")
    if "nearest, LPIPS" not in names:
        notes.append("Pixels alone: no LPIPS or Inception weights, or the generator sees tissue.")
    if facts["patches"] < 100:
        notes.append("With fewer than 100 unseen patches, 1 % FPR allows no false positive at all.")
    return Table(title, header, body, tuple(notes))


def write_nearest(sides: Sides, count: int, path: Path) -> None:
    """Write patches made from training masks alone, each next to its real patch, nearest first."""
    members = np.flatnonzero(sides.is_member)
    real = sides.patches.images
    own = np.eye(len(real), dtype=np.bool_)[members]
    made = sides.from_masks[members]
    distance, _ = perceptual.find_nearest_turned(made, real, own, sides.weights[members])
    rows = np.argsort(distance, kind="stable")[:count]
    panels: dict[str, NDArray[Any]] = {
        "mask": sides.patches.masks[members[rows]],
        "made from it": made[rows],
        "training patch": real[members[rows]],
    }
    image_grid.save_grid(panels, path)

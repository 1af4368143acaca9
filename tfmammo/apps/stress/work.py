"""A whole stress test: pairs, detectors, tables, page, run."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

from tfmammo.apps.stress import analysis, prediction
from tfmammo.apps.stress.config import StressConfig
from tfmammo.apps.stress.detectors import KNOWN, open_detector
from tfmammo.apps.stress.page import write_page
from tfmammo.apps.stress.pairs import make_pairs, make_removals
from tfmammo.apps.stress.scoring import run
from tfmammo.data import datasets
from tfmammo.errors import DataError
from tfmammo.evaluation.report import EXPERIMENT, write_markdown
from tfmammo.mammogram import Skipped
from tfmammo.metrics.summary import Table, write_csv
from tfmammo.tracking import runs


def stress(config: StressConfig, output: Path) -> list[Table]:
    """Run a stress test; write table.md, index.html, pairs.csv, summary.json and pictures."""
    detectors = {name: open_detector(uri, config) for name, uri in config.detectors.items()}
    unseen = prediction.list_unseen(detectors, config)  # errors come before hours of work
    skipped = Skipped()
    opened = detectors.values()
    pairs = chain(make_pairs(config, opened, skipped), make_removals(config, opened, skipped))
    trials = run(detectors, pairs, config)
    datasets.log_skipped(skipped)
    if not any(trial.list_of(name) for trial in trials.values() for name in config.methods):
        reasons = [reason for reason in skipped.reasons.values() if reason != KNOWN]
        first = next(iter(reasons), "no mammogram was found")
        raise DataError(f"no pair could be made; first reason: {first}")
    curves = {
        (detector, method): analysis.fit_curves(outcomes, trial.limit, config)
        for detector, trial in trials.items()
        for method in config.methods
        if (outcomes := trial.list_of(method))
    }
    tables = [
        analysis.tabulate_thresholds(curves, trials, config),
        analysis.tabulate_controls(trials, config),
        analysis.tabulate_sensitivity(trials, config),
        analysis.tabulate_strata(trials, config),
    ]
    predictions: list[prediction.Prediction] = []
    if config.unseen:
        recall = prediction.measure_recall(detectors, unseen, config)
        predictions = prediction.predict(trials, *recall, config)
        tables += prediction.tabulate(predictions, config)
    output.mkdir(parents=True, exist_ok=True)
    write_markdown(output / "table.md", tables)
    write_csv(output / "pairs.csv", analysis.list_rows(trials))
    summary = {
        "curves": [
            {"detector": detector, "method": method, **dataclasses.asdict(both)}
            for (detector, method), both in curves.items()
        ],
        "operating_points": {
            name: {"limit": trial.limit, "fppi": trial.fppi} for name, trial in trials.items()
        },
        "predictions": [dataclasses.asdict(each) for each in predictions],
        "skipped": len(skipped),
    }
    text = json.dumps(_replace_infinite(summary), indent=1)
    (output / "summary.json").write_text(text, encoding="utf-8")
    write_page(output, tables, curves, trials, config)
    if config.tracking_uri:
        metrics = {
            f"{detector}/{method}/contrast_50": both.contrast.threshold
            for (detector, method), both in curves.items()
            if both.contrast
        }
        metrics |= {f"{each.method}/rank_correlation": each.correlation for each in predictions}
        content = config.model_dump(mode="json")
        runs.log_folder(output, config.tracking_uri, EXPERIMENT, content, metrics)
    return tables


def _replace_infinite(value: Any) -> Any:
    """Replace infinity, which JSON lacks, by "inf" and "-inf", and NaN by null."""
    if isinstance(value, dict):
        return {key: _replace_infinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_infinite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

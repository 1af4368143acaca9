"""Which config class each command reads.

A plan is checked with them before anything runs, and `tfmammo schema` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfmammo.apps.audit.attacks import AuditConfig
from tfmammo.apps.exchange.cases import ExchangeConfig
from tfmammo.apps.pacs.config import RoundTripConfig
from tfmammo.apps.reader_study.cases import ReaderStudyConfig
from tfmammo.apps.registry.promotion import PromotionConfig
from tfmammo.apps.report.config import ReportConfig
from tfmammo.apps.serving.pictures import ServiceConfig
from tfmammo.apps.stress.config import StressConfig
from tfmammo.apps.studio.config import StudioConfig
from tfmammo.data.build import BuildConfig
from tfmammo.evaluation.blending import BlendingEvaluationConfig
from tfmammo.evaluation.comparison import EvaluationConfig
from tfmammo.evaluation.contiguous import ContiguousConfig
from tfmammo.evaluation.defects import DefectsConfig
from tfmammo.evaluation.detection import DetectionConfig
from tfmammo.evaluation.frames import FramesConfig
from tfmammo.evaluation.losses import LossesConfig
from tfmammo.evaluation.mammograms import MammogramsConfig
from tfmammo.evaluation.realism import RealismConfig
from tfmammo.evaluation.segmentation import SegmentationConfig
from tfmammo.evaluation.synthesis import SynthesisConfig as SheetConfig
from tfmammo.studies import classification, detection, segmentation, segmenters
from tfmammo.studies.systems import MODELS, make_schema
from tfmammo.synthesis.config import PatchSynthesisConfig, SynthesisConfig

SCHEMAS: Mapping[str, Any] = {
    **{f"train/{name}.py": make_schema(model) for name, model in MODELS.items()},
    "-m tfmammo.apps.audit": AuditConfig,
    "-m tfmammo.data.build": BuildConfig,
    "-m tfmammo.apps.exchange": ExchangeConfig,
    "-m tfmammo.apps.pacs": RoundTripConfig,
    "-m tfmammo.apps.reader_study": ReaderStudyConfig,
    "-m tfmammo.apps.registry promote": PromotionConfig,
    "-m tfmammo.apps.serving register": ServiceConfig,
    "-m tfmammo.apps.stress": StressConfig,
    "-m tfmammo.apps.studio": StudioConfig,
    "-m tfmammo.synthesis": SynthesisConfig,
    "-m tfmammo.synthesis.patches": PatchSynthesisConfig,
    "evaluate/blending.py": BlendingEvaluationConfig,
    "evaluate/classification.py": classification.StudyConfig,
    "evaluate/compare.py": segmenters.ComparisonConfig,
    "evaluate/contiguous.py": ContiguousConfig,
    "evaluate/defects.py": DefectsConfig,
    "evaluate/detection.py": DetectionConfig,
    "evaluate/detection.py --study": detection.StudyConfig,
    "evaluate/frames.py": FramesConfig,
    "evaluate/losses.py": LossesConfig,
    "evaluate/mammograms.py": MammogramsConfig,
    "evaluate/realism.py": RealismConfig,
    "evaluate/report.py": ReportConfig,
    "evaluate/segmentation.py": SegmentationConfig,
    "evaluate/segmentation.py --study": segmentation.StudyConfig,
    "evaluate/shape.py": EvaluationConfig,
    "evaluate/synthesis.py": SheetConfig,
}


def find_schema(run: str) -> Any:
    """Return the config class of a script or module with its flags; None if it is not known."""
    matches = [name for name in SCHEMAS if run == name or run.startswith(f"{name} ")]
    return SCHEMAS[max(matches, key=len)] if matches else None

"""Which config class each command reads.

A plan is checked with them before anything runs, and `tfmammo schema` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfmammo.audit.config import AuditConfig
from tfmammo.baselines.fcn8s import FCN8sConfig
from tfmammo.baselines.pix2pix import Pix2PixConfig
from tfmammo.baselines.residual_unet import ResidualUNetConfig
from tfmammo.baselines.segnet import SegNetConfig
from tfmammo.baselines.unet import UNetConfig
from tfmammo.baselines.vanilla_gan import VanillaGANConfig
from tfmammo.config import Experiment
from tfmammo.data.build import BuildConfig
from tfmammo.detection.light_head_rcnn import LightHeadRCNNConfig
from tfmammo.detection.mask_rcnn import MaskRCNNConfig
from tfmammo.detection.ssd import SSDConfig
from tfmammo.evaluation.blending import BlendingEvaluationConfig
from tfmammo.evaluation.comparison import EvaluationConfig
from tfmammo.evaluation.contiguous import ContiguousConfig
from tfmammo.evaluation.defects import DefectsConfig
from tfmammo.evaluation.detection import DetectionConfig
from tfmammo.evaluation.detectors import DetectorsConfig
from tfmammo.evaluation.frames import FramesConfig
from tfmammo.evaluation.losses import LossesConfig
from tfmammo.evaluation.mammograms import MammogramsConfig
from tfmammo.evaluation.realism import RealismConfig
from tfmammo.evaluation.segmentation import SegmentationConfig
from tfmammo.evaluation.synthesis import SynthesisConfig as SheetConfig
from tfmammo.exchange.config import ExchangeConfig
from tfmammo.models.blending import BlendingConfig
from tfmammo.models.can import CANConfig
from tfmammo.models.cgan import CGANConfig
from tfmammo.models.classifier import ClassifierConfig
from tfmammo.models.contextual import ContextualConfig
from tfmammo.models.flow import FlowConfig
from tfmammo.models.infilling import InfillingConfig
from tfmammo.models.mask_gan import MaskGANConfig
from tfmammo.models.shape import ShapeConfig
from tfmammo.pacs.config import CaseConfig
from tfmammo.reader_study.cases import ReaderStudyConfig
from tfmammo.registry.promotion import PromotionConfig
from tfmammo.reproduction.config import ReportConfig
from tfmammo.serving.pictures import ServiceConfig
from tfmammo.stress.config import StressConfig
from tfmammo.studies import classification, detection, segmentation, segmenters
from tfmammo.studio.config import StudioConfig
from tfmammo.synthesis.config import PatchSynthesisConfig, SynthesisConfig


def make_schema(model: Any) -> Any:
    """Make the config class of a training from that of its `model` section."""
    return Experiment[model]


MODELS: Mapping[str, Any] = {
    "blending": BlendingConfig,
    "can": CANConfig,
    "cgan": CGANConfig,
    "classifier": ClassifierConfig,
    "contextual": ContextualConfig,
    "fcn8s": FCN8sConfig,
    "flow": FlowConfig,
    "infilling": InfillingConfig,
    "light_head_rcnn": LightHeadRCNNConfig,
    "mask_gan": MaskGANConfig,
    "mask_rcnn": MaskRCNNConfig,
    "pix2pix": Pix2PixConfig,
    "residual_unet": ResidualUNetConfig,
    "segnet": SegNetConfig,
    "shape": ShapeConfig,
    "ssd": SSDConfig,
    "unet": UNetConfig,
    "vanilla_gan": VanillaGANConfig,
}
SCHEMAS: Mapping[str, Any] = {
    **{f"train/{name}.py": make_schema(model) for name, model in MODELS.items()},
    "-m tfmammo.audit": AuditConfig,
    "-m tfmammo.data.build": BuildConfig,
    "-m tfmammo.exchange": ExchangeConfig,
    "-m tfmammo.reader_study": ReaderStudyConfig,
    "-m tfmammo.registry promote": PromotionConfig,
    "-m tfmammo.serving register": ServiceConfig,
    "-m tfmammo.stress": StressConfig,
    "-m tfmammo.studio": StudioConfig,
    "-m tfmammo.synthesis": SynthesisConfig,
    "-m tfmammo.synthesis.patches": PatchSynthesisConfig,
    "evaluate/blending.py": BlendingEvaluationConfig,
    "evaluate/case.py": CaseConfig,
    "evaluate/classification.py": classification.StudyConfig,
    "evaluate/compare.py": segmenters.ComparisonConfig,
    "evaluate/contiguous.py": ContiguousConfig,
    "evaluate/defects.py": DefectsConfig,
    "evaluate/detection.py": DetectionConfig,
    "evaluate/detection.py --study": detection.StudyConfig,
    "evaluate/detectors.py": DetectorsConfig,
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
    """Return the config class of a command; None for a command that is not known.

    Args:
        run: A script or module, with its flags.
    """
    matches = [name for name in SCHEMAS if run == name or run.startswith(f"{name} ")]
    return SCHEMAS[max(matches, key=len)] if matches else None

"""Which config class each train script has, and the check of planned commands by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmammo.baselines.fcn8s import FCN8sConfig
from tfmammo.baselines.pix2pix import Pix2PixConfig
from tfmammo.baselines.residual_unet import ResidualUNetConfig
from tfmammo.baselines.segnet import SegNetConfig
from tfmammo.baselines.unet import UNetConfig
from tfmammo.baselines.vanilla_gan import VanillaGANConfig
from tfmammo.config import Experiment
from tfmammo.detection.light_head_rcnn import LightHeadRCNNConfig
from tfmammo.detection.mask_rcnn import MaskRCNNConfig
from tfmammo.detection.ssd import SSDConfig
from tfmammo.errors import ConfigError
from tfmammo.models.blending import BlendingConfig
from tfmammo.models.can import CANConfig
from tfmammo.models.cgan import CGANConfig
from tfmammo.models.classifier import ClassifierConfig
from tfmammo.models.contextual import ContextualConfig
from tfmammo.models.flow import FlowConfig
from tfmammo.models.infilling import InfillingConfig
from tfmammo.models.mask_gan import MaskGANConfig
from tfmammo.models.shape import ShapeConfig
from tfmammo.studies.workflow import Step, parse_step
from tfmammo.synthesis.config import SynthesisConfig


def make_schema(model: Any) -> Any:
    """Make the config class of a train script from that of its `model` section."""
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


def check_steps(steps: Sequence[Step]) -> None:
    """Refuse at once what a run or a synthesis would refuse hours later.

    That is a script or file that does not exist, or a wrong key.

    Raises:
        ConfigError: Names the step, the file and the key.
    """
    for step in steps:
        script = step.command[0]
        if script != "-m" and not Path(script).is_file():
            raise ConfigError(f"{step.name}: there is no script {script}")
        if Path(script).parent.name == "evaluate":  # its config follows from the study's
            continue
        model = MODELS.get(Path(script).stem, dict[str, Any])  # any: of a paper that is not shipped
        schema = SynthesisConfig if script == "-m" else make_schema(model)
        parse_step(step, schema, step.name)

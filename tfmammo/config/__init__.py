"""Configs: YAML files and overrides, read into frozen pydantic models."""

from tfmammo.config.parsing import FIXED as FIXED
from tfmammo.config.parsing import TRAINING_CONFIG as TRAINING_CONFIG
from tfmammo.config.parsing import Frozen as Frozen
from tfmammo.config.parsing import Width as Width
from tfmammo.config.parsing import describe as describe
from tfmammo.config.parsing import dump as dump
from tfmammo.config.parsing import format_override as format_override
from tfmammo.config.parsing import format_overrides as format_overrides
from tfmammo.config.parsing import is_training_folder as is_training_folder
from tfmammo.config.parsing import parse as parse
from tfmammo.config.parsing import read_value as read_value
from tfmammo.config.parsing import read_yaml as read_yaml
from tfmammo.config.sections import AddedConfig as AddedConfig
from tfmammo.config.sections import DataConfig as DataConfig
from tfmammo.config.sections import Experiment as Experiment
from tfmammo.config.sections import PreprocessConfig as PreprocessConfig
from tfmammo.config.sections import SamplingConfig as SamplingConfig
from tfmammo.config.sections import Statistics as Statistics
from tfmammo.config.sections import TilesConfig as TilesConfig
from tfmammo.config.sections import TrackingConfig as TrackingConfig
from tfmammo.config.sections import TrainingConfig as TrainingConfig
from tfmammo.config.sections import load as load

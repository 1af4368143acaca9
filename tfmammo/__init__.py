"""tfmammo: adversarial networks that make, segment, detect and classify breast lesions in
mammograms.

The names in `__all__` are all that a script needs. They are imported when they are first used:
`import tfmammo` itself imports no TensorFlow.
"""

import os
from typing import TYPE_CHECKING, Any

# All are read once, when TensorFlow and Keras are first imported, so they precede any import
# of ours.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow leaves oneDNN out on processors without instructions for neural networks (AVX-512 VNNI,
# AMX). Its convolutions are faster there, and TensorFlow's own can't be transposed with a
# dilation.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

__all__ = [
    "DataConfig",
    "Detector",
    "EditResult",
    "Lesion",
    "Mammogram",
    "Model",
    "Patch",
    "Patches",
    "Skipped",
    "Table",
    "TfmammoError",
    "augment",
    "estimate_memory",
    "evaluate",
    "insert_lesion",
    "load",
    "load_config",
    "make_patches",
    "open_archive",
    "open_mammogram",
    "predict",
    "predict_files",
    "remove_lesion",
    "score_masks",
    "split_patches",
    "train",
]

# ruff: noqa: F403, F405
if TYPE_CHECKING:  # what editors and mypy read
    from tfmammo.api import *


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tfmammo' has no attribute {name!r}", name=name)
    from tfmammo import api

    value = getattr(api, name)
    globals()[name] = value  # the next use asks no more
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

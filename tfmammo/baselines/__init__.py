"""What the papers compare with, one file each, on the same contract as tfmammo.models."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

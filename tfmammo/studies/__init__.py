"""Experiments that consist of many trainings."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

"""Experiments that consist of many training runs."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

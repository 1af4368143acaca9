"""Mammograms -> patches -> splits -> batches. Knows the record, and no archive."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

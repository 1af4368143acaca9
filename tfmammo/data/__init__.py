"""Mammograms -> patches -> splits -> batches. Knows the record, and no archive."""

import tfmammo._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

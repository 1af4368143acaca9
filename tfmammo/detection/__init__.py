"""Detectors of lesions in whole mammograms, one file each, behind the contract of detections.py."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

"""Detectors: what finds lesions in whole mammograms, each in a file of its own, all behind
the contract of detections.py.
"""

import tfmammo._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

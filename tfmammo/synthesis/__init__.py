"""Synthesis: lesions inserted into mammograms or removed from them, and sets of both."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

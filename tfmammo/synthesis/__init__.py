"""Lesions set into mammograms, removed from them, and synthetic sets of both."""

import tfmammo._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

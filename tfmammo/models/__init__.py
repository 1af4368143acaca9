"""The papers' rooms, one file each."""

import tfmammo.quiet  # noqa: F401 - TensorFlow's first import, without its chatter

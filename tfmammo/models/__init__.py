"""The papers' rooms, one file each."""

import tfmammo._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

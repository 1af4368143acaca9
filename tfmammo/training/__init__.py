"""The training loop, its tracking and what the scripts share."""

import tfmammo._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

"""The training loop, and what the train scripts share."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

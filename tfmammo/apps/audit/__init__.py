"""Whether a generator reveals its training patients."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

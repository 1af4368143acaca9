"""Which version of a registered model is the best one."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

"""How trained networks are scored: what evaluate/*.py print."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

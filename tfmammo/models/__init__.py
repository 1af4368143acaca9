"""The papers' models, one file each; growth.py is a part of contextual.py."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

"""The CAD pipeline: detect, segment and classify in one mammogram."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

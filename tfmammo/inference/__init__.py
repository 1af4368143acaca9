"""The CAD pipeline: detect, segment and classify in one mammogram."""

import tfmammo._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

"""The studio: edit mammograms, run the CAD pipeline and reader studies in a browser."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

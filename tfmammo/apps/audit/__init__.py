"""Whether a generator reveals its training patients."""

__all__: list[str] = []

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

"""Observer studies: readers judge patches, the results are tested."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

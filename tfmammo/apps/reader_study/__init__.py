"""Observer studies: readers answer in the browser, and their answers are tested."""

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

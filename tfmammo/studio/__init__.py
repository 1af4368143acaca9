"""The studio: lesions into mammograms, mammograms read, and reader studies, in a browser
(extra `serve`).
"""

import tfmammo._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

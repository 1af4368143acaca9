"""What the papers compare with, one system a file, on the same contract as the rooms of
tfmammo.models.
"""

import tfmammo._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

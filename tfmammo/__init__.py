"""tfmammo: adversarial networks that make, segment, detect and classify breast lesions in
mammograms.
"""

import os

# Both are read once, when TensorFlow and Keras are first imported, so they stand before any import
# of ours.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"

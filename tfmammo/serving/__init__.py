"""What is served over HTTP: networks as MLflow registers them, and whole systems that take
pictures.

pictures.py   pictures in, masks, lesions or synthetic mammograms out: a network, the case chain, a
              synthesiser
entry.py      what MLflow loads of those
saving.py     what the registry stores of either
server.py     MLflow's protocol over HTTP, with limits, short errors, /health and a histogram of
              latencies
`python -m tfmammo.serving` registers systems, serves them, and lays SavedModels out for TensorFlow
Serving.
"""

import tfmammo.tracking  # noqa: F401 - sets up MLflow and TensorFlow without their chatter

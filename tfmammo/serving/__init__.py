"""What is served over HTTP: networks as MLflow registers them, and whole systems that take pictures.

networks.py   the arrays of one export; every training registers its own; needs nothing of tfmammo on the server
pictures.py   pictures in, masks, lesions or synthetic mammograms out: a network, the case chain, a synthesiser
entry.py      what MLflow loads of those
saving.py     what the registry stores of either
server.py     MLflow's protocol over HTTP, with limits, short errors, /health and a histogram of latencies
`python -m tfmammo.serving` registers systems, serves them, and lays SavedModels out for TensorFlow Serving.
"""

"""Models served over HTTP: networks, CAD pipelines and editors.

pictures.py     services: images in; masks, findings or synthetic mammograms out
requests.py     the images of a request
entry.py        the pyfunc model of a service, for MLflow's own server
saving.py       what the registry stores
server.py       MLflow's protocol over HTTP, with limits, short errors, /health and /metrics
web.py          what the server and the studio share: uvicorn, who may ask, a private folder

`tfmammo serve` registers services, serves models, and exports SavedModels for
TensorFlow Serving.
"""

import tfmammo.tracking  # noqa: F401 - sets up MLflow and TensorFlow without their chatter

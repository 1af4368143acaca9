"""Everything that knows MLflow: its store, runs, registered models, and how those are saved."""

import os

import tfmammo.nn._tensorflow  # noqa: F401 - TensorFlow's first import, without its chatter

# MLflow reads these at import or at each request: no usage reports, no lines on stdout, no progress
# bars over ours, and one retry instead of seven, which would delay a training run by minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

"""What MLflow loads as a model that takes pictures: from this text, so that nothing is pickled. The package must be installed."""

from mlflow.models import set_model

from tfmammo.serving.pictures import Pictures

set_model(Pictures())

"""The pyfunc model of a service, which MLflow loads from this text, so that nothing is pickled.

`mlflow models serve` runs it, and needs the package installed. `tfmammo serve run` does not.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tfmammo.apps.serving.pictures import Answer, Service, unpack
from tfmammo.errors import TfmammoError

# isort: split
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from tfmammo.apps.serving.saving import SERVICE

# MLflow warns, past any filter, that it does not check such requests. They are checked here.
with warnings.catch_warnings(record=True):

    class Pictures(PythonModel):
        """A service behind MLflow's `predict`."""

        def load_context(self, context: PythonModelContext) -> None:
            """Load the artifact "service", a folder that `pictures.gather` made."""
            self.service = Service.load(unpack(Path(context.artifacts[SERVICE])))

        def predict(
            self,
            context: PythonModelContext,
            model_input: list[dict[str, Any]],
            params: dict[str, Any] | None = None,
        ) -> list[Answer]:
            """Answer images; an MlflowException with status 400 says why not."""
            try:
                return self.service.answer(model_input)
            except TfmammoError as error:
                raise MlflowException.invalid_parameter_value(str(error)) from None


set_model(Pictures())

"""What MLflow loads as a model that takes pictures: from this text, so that nothing is pickled.

The package must be installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfmammo.serving.pictures import Answer, Service, go_on, unpacked

# isort: split
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from tfmammo.serving.saving import SERVICE

# MLflow warns, past any filter, that it does not check such requests: they are checked here.
with warnings.catch_warnings(record=True):

    class Pictures(PythonModel):
        """A service behind MLflow's `predict`.

        Attributes:
            pictures: That its inputs are a list of them.
            proceed: See `go_on`.
        """

        pictures = True
        proceed: Callable[[], None] = staticmethod(go_on)

        def load_context(self, context: PythonModelContext) -> None:
            """Read the artifact "service", a folder that `pictures.gathered` made."""
            self.service = Service.load(unpacked(Path(context.artifacts[SERVICE])))

        def predict(
            self,
            context: PythonModelContext,
            model_input: list[dict[str, Any]],
            params: dict[str, Any] | None = None,
        ) -> list[Answer]:
            """See tfmammo.serving.pictures.

            Raises:
                MlflowException: What can't be answered, with status 400.
            """
            try:
                return self.service.answer(model_input, self.proceed)
            except ValueError as error:
                if not type(error).__module__.startswith("tfmammo"):
                    raise
                raise MlflowException.invalid_parameter_value(str(error)) from None


set_model(Pictures())

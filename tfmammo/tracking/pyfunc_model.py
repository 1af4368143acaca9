"""The server's side of an export: MLflow loads this model from its file's text, without a pickle.

It imports nothing of tfmammo: the registered model holds this file and the export, and needs only
TensorFlow, MLflow and NumPy. `mlflow models serve --env-manager local -m models:/tfmammo-can@best`
answers a POST to /invocations of {"inputs": [[...]]}, [n, s, s, 1] in [0, 1], with {"predictions":
{"mask": [[...]]}}. With "params": {"network": "generator"} beside the inputs, another function of
the export answers. If the card serves a function of several inputs, they are an object:
{"inputs": {"mask": ..., "image": ...}}. (MLflow's signature allows either the array or the object;
Python callers of `predict` may give both.) The network sees eight patches at a time, however many
there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

BATCH = 8  # patches that a network sees at once, so that memory does not grow with a request


class ExportedNetworks(PythonModel):
    """All functions of one export behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the card and the SavedModels of the artifact "export"."""
        directory = Path(context.artifacts["export"])
        self.card = json.loads((directory / "card.json").read_text(encoding="utf-8"))
        self.loaded = {
            name: tf.saved_model.load(str(directory / name)) for name in self.card["functions"]
        }

    # MLflow knows no type for "an array or a dict of arrays", and warns of any that it does not
    # know.
    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """Call one function of the export.

        Args:
            model_input: float32 [n, s, s, 1] in [0, 1], n >= 1, or input's name -> such an array.
            params: {"network": name}; by default what the card serves.

        Returns:
            Output's name -> float32 array.

        Raises:
            MlflowException: Unknown network or input, wrong shape, values outside the card's range.
                A server answers it with status 400.
        """
        name = (params or {}).get("network") or self.card["serves"]
        if name not in self.card["functions"]:
            raise _make_error(
                f"there is no network {name}, only {', '.join(self.card['functions'])}"
            )
        expected = self.card["functions"][name]["inputs"]
        arrays = {
            key: _check_array(key, value, expected[key])
            for key, value in _name_arrays(name, model_input, expected).items()
        }
        count = len(next(iter(arrays.values())))
        if any(len(array) != count for array in arrays.values()):
            raise _make_error(f"{' and '.join(arrays)} must hold equally many patches")
        return self._call_in_parts(self.loaded[name].signatures["serving_default"], arrays, count)

    def _call_in_parts(
        self, call: Any, arrays: Mapping[str, np.ndarray], count: int
    ) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {}
        for first in range(0, count, BATCH):
            outputs = call(
                **{key: tf.constant(array[first : first + BATCH]) for key, array in arrays.items()}
            )
            for key, output in outputs.items():
                parts.setdefault(key, []).append(output.numpy())
        return {key: np.concatenate(batches) for key, batches in parts.items()}


def _name_arrays(network: str, model_input: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(model_input, Mapping) and set(model_input) == set(expected):
        return dict(model_input)
    if isinstance(model_input, np.ndarray) and len(expected) == 1:
        return {next(iter(expected)): model_input}
    raise _make_error(
        f"{network} takes {' and '.join(expected)}: one array, or an object with these names, "
        "under the key inputs"
    )


def _check_array(name: str, value: Any, expected: Mapping[str, Any]) -> np.ndarray:
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise _make_error(f"{name} is no regular array of numbers") from None
    shape = expected["shape"]
    if (
        array.ndim != len(shape)
        or array.size == 0
        or any(want not in (None, size) for size, want in zip(array.shape, shape, strict=True))
    ):
        wanted = ", ".join("n" if size is None else str(size) for size in shape)
        raise _make_error(
            f"{name} must have the shape [{wanted}] with n >= 1, not {list(array.shape)}"
        )
    low, high = expected["range"] or (-np.finfo(np.float32).max, np.finfo(np.float32).max)
    if not (array.min() >= low and array.max() <= high):  # written so that NaN fails too
        raise _make_error(
            f"{name} must be in [{low:g}, {high:g}], but reaches from {array.min():g} to "
            f"{array.max():g}"
        )
    return array


def _make_error(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


set_model(ExportedNetworks())

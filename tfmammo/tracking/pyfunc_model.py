"""The server's side of an export: a model that MLflow loads from this file's text, so that
nothing is pickled.

It imports nothing of tfmammo: the registered model holds this file and the export, and needs only
TensorFlow, MLflow and NumPy. `mlflow models serve --env-manager local -m models:/tfmammo-can@best`
answers a POST to /invocations of {"inputs": [[...]]}, [n, s, s, 1] in [0, 1], with {"predictions":
{"mask": [[...]]}}; with "params": {"network": "generator"} beside the inputs another function of
the export answers. Where the card serves a function of several inputs, they are an object:
{"inputs": {"mask": ..., "image": ...}}. (MLflow's signature allows either the array or the object;
Python callers of `predict` may give both.) However many patches come, the network sees eight at a
time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

AT_ONCE = 8  # patches that a network sees, so that memory does not follow from a request


def _go_on() -> None:
    """What is asked before each call of a network; a server puts something in its place that raises
    where nobody waits any more.
    """


class ExportedNetworks(PythonModel):
    """All functions of one export behind MLflow's `predict`.

    Attributes:
        proceed: See `_go_on`.
    """

    proceed: Callable[[], None] = staticmethod(_go_on)

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
            raise _refusal(f"there is no network {name}, only {', '.join(self.card['functions'])}")
        expected = self.card["functions"][name]["inputs"]
        arrays = {
            key: _checked(key, value, expected[key])
            for key, value in _named(name, model_input, expected).items()
        }
        count = len(next(iter(arrays.values())))
        if any(len(array) != count for array in arrays.values()):
            raise _refusal(f"{' and '.join(arrays)} must hold equally many patches")
        return self._answers(self.loaded[name].signatures["serving_default"], arrays, count)

    def _answers(
        self, call: Any, arrays: Mapping[str, np.ndarray], count: int
    ) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {}
        for first in range(0, count, AT_ONCE):
            self.proceed()
            outputs = call(
                **{
                    key: tf.constant(array[first : first + AT_ONCE])
                    for key, array in arrays.items()
                }
            )
            for key, output in outputs.items():
                found.setdefault(key, []).append(output.numpy())
        return {key: np.concatenate(parts) for key, parts in found.items()}


def _named(network: str, model_input: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(model_input, Mapping) and set(model_input) == set(expected):
        return dict(model_input)
    if isinstance(model_input, np.ndarray) and len(expected) == 1:
        return {next(iter(expected)): model_input}
    raise _refusal(
        f"{network} takes {' and '.join(expected)}: one array, or an object with these names, "
        "under the key inputs"
    )


def _checked(name: str, value: Any, expected: Mapping[str, Any]) -> np.ndarray:
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise _refusal(f"{name} is no regular array of numbers") from None
    shape = expected["shape"]
    if (
        array.ndim != len(shape)
        or array.size == 0
        or any(want not in (None, size) for size, want in zip(array.shape, shape, strict=True))
    ):
        wanted = ", ".join("n" if size is None else str(size) for size in shape)
        raise _refusal(
            f"{name} must have the shape [{wanted}] with n >= 1, not {list(array.shape)}"
        )
    low, high = expected["range"] or (-np.finfo(np.float32).max, np.finfo(np.float32).max)
    if not (array.min() >= low and array.max() <= high):  # written so that NaN fails too
        raise _refusal(
            f"{name} must lie in [{low:g}, {high:g}], but reaches from {array.min():g} to "
            f"{array.max():g}"
        )
    return array


def _refusal(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


set_model(ExportedNetworks())

"""A server runs a registered model only if its code is that of this package."""

import pytest
from mlflow.models import Model

from tfmammo.apps.serving import saving
from tfmammo.errors import ConfigError


@pytest.fixture
def saved(tmp_path):
    """A model as this package saves it, around a service that is none."""
    (tmp_path / "service").mkdir()
    saving.save_service(tmp_path / "model", tmp_path / "service", "0" * 32)
    return tmp_path / "model"


def edited(folder, **changes):
    """A model whose description is another; None takes a key away."""
    known = Model.load(str(folder))
    flavor = known.flavors["python_function"] | changes
    known.flavors["python_function"] = {
        key: value for key, value in flavor.items() if value is not None
    }
    known.save(str(folder / "MLmodel"))
    return folder


def test_our_own_code_is_run(saved):
    saving.check(saved, "mine")
    (saved / "entry.py").write_text("# of another package")
    with pytest.raises(ConfigError, match="its code is not that of this package"):
        saving.check(saved, "mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # which MLflow would unpickle
        ({"model_code_path": None, "python_model": "python_model.pkl"}, "as a pickle"),
        ({"loader_module": "mlflow.sklearn"}, "as a pickle or by another framework"),
        # whose modules would come before all others
        ({"code": "code"}, "its code is not that of this package"),
        # where MLflow would look for another model
        ({"data": "data"}, "its code is not that of this package"),
        ({"predict_fn": "load_context"}, "its code is not that of this package"),
    ],
)
def test_nothing_but_our_own_code_is_run(saved, changes, message):
    with pytest.raises(ConfigError, match=f"^mine: .*{message}"):
        saving.check(edited(saved, **changes), "mine")

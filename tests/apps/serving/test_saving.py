"""A server runs a registered model only if its code is that of this package."""

import pytest
from mlflow.models import Model

from tfmammo.apps.serving import saving
from tfmammo.apps.serving.__main__ import main
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


def test_the_command_runs_no_other_code(saved, tmp_path, capsys):
    (saved / "entry.py").write_text(
        f"open({str(tmp_path / 'run')!r}, 'w').close()\n" + saving.ENTRY.read_text()
    )
    with pytest.raises(SystemExit) as caught:
        main(["run", "--model", str(saved)])
    assert (
        caught.value.code == 2 and "its code is not that of this package" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()

"""Tracking: a real SQLite store in a temporary folder, and a real server in the slow test."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import cv2
import keras
import mlflow
import numpy as np
import pytest

from tests.http_server import reply, serve
from tests.known_networks import KnownModel
from tests.ports import find_free_port, run_mlflow
from tfmammo.config import Experiment, TrackingConfig
from tfmammo.errors import ExportError, TrackingError
from tfmammo.nn.networks import export_function
from tfmammo.tracking import __main__ as listing
from tfmammo.tracking import history, models, runs, store
from tfmammo.tracking.export import export, load
from tfmammo.tracking.models import resolve
from tfmammo.tracking.pyfunc import NETWORKS
from tfmammo.tracking.runs import Run
from tfmammo.tracking.store import read_git_state, store_uri


def make_model():
    """Make an inverter of one 1x1 convolution, 4x4 px."""
    layer = keras.layers.Conv2D(1, 1, activation="sigmoid")
    network = keras.Sequential([keras.Input((4, 4, 1)), layer])
    inverter = export_function(lambda image: {"mask": network(image)}, image=(4, 4, 1))
    return KnownModel("tiny", {"inverter": network}, {"inverter": inverter})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    card = {"name": "tiny", "git_commit": "c0ffee", "data_fingerprint": "0123456789ab"}
    return export(make_model(), tmp_path_factory.mktemp("exported") / "export", card)


@pytest.fixture
def folder(tmp_path, monkeypatch, empty_store):
    """The current folder, with an empty default store in it."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def experiment(model=None, **tracking_options):
    options = {"system_metrics": False} | tracking_options
    return Experiment[dict](name="tiny", tracking=TrackingConfig(**options), model=model or {})


def client(uri=None):
    return mlflow.MlflowClient(store_uri(uri))


def stored(run):
    return client().get_run(run.id)


def test_where_runs_and_their_artifacts_go(folder, monkeypatch):
    """Artifacts are next to the database, wherever the training runs."""
    assert store_uri() == f"sqlite:///{folder}/mlflow.db"
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    run = Run(experiment(uri=f"sqlite:///{folder}/mlflow.db"), folder / "output")
    run.log_image("grid", np.zeros((2, 2), np.uint8), step=0)
    run.close()
    assert len(list((folder / "mlruns").rglob("*.png"))) == 1
    assert list((folder / "elsewhere").iterdir()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert store_uri() == "http://server:5000"
    assert store_uri("http://other") == "http://other"


@pytest.mark.parametrize(
    ("address", "harmless"),
    [
        ("postgresql://anna:geheim@db.example:5432/runs", "postgresql://db.example:5432/runs"),
        ("postgresql://anna:ge/he?im#@x@db.example/runs", "postgresql://db.example/runs"),
        ("https://mlflow.example/api?token=geheim&team=a", "https://mlflow.example/api"),
        ("https://mlflow.example/#geheim", "https://mlflow.example/"),
        ("mysql+pymysql://anna:geheim@db/runs?password=geheim", "mysql+pymysql://db/runs"),
        ("refused with url: /api/2.0?token=geheim (x)", "refused with url: /api/2.0 (x)"),
        ("sqlite:////data/anna@home/mlflow.db", "sqlite:////data/anna@home/mlflow.db"),
        ("sqlite:////data/INbreast#2/mlflow.db", "sqlite:////data/INbreast#2/mlflow.db"),
        ("models:/tfmammo-can@best, is that so?", "models:/tfmammo-can@best, is that so?"),
    ],
)
def test_a_shown_address_holds_no_secret(address, harmless):
    assert store.redact(address) == harmless
    text = store.redact(f"said by {address} and more")
    assert "geheim" not in text and text.endswith(" and more")


def test_no_parameter_and_no_tag_holds_a_stores_password(folder):
    addresses = {"handle": "https://anna:geheim@mlflow.example/x", "all": ["http://m/?a=geheim"]}
    run = Run(experiment(addresses), folder / "output")
    run.log_tags({"command": "--set tracking.uri=postgresql://anna:ge/heim@db/runs"})
    values = {"tracking": {"uri": "http://anna:geheim@m"}}
    runs.log_folder(folder / "output", store_uri(), "report", values, {})
    content = (folder / "mlflow.db").read_bytes()
    assert b"geheim" not in content and b"ge/heim" not in content
    assert b"postgresql://db/runs" in content


def test_metrics_keep_their_steps_and_times_however_many_they_are(folder):
    run = Run(experiment({f"p{i}": i for i in range(101)}), folder / "output")
    before = time.time()
    run.log_metrics({"loss/generator": np.float32(2.0), "loss_scale": 8}, step=1)
    run.log_metrics({"loss/generator": 1.0} | {f"m{i}": i for i in range(1001)}, step=11)
    run.log_tags({f"t{i}": i for i in range(101)})
    entries = client().get_metric_history(run.id, "loss/generator")
    assert [(metric.step, metric.value) for metric in entries] == [(1, 2.0), (11, 1.0)]
    assert all(before - 1 <= metric.timestamp / 1000 <= time.time() + 1 for metric in entries)
    data = stored(run).data
    assert (data.metrics["loss_scale"], data.metrics["m1000"]) == (8, 1000)
    assert (data.tags["t100"], data.params["model.p100"]) == ("100", "100")


def test_images_become_artifacts(folder):
    run = Run(experiment(), folder / "output")
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 1), np.uint8)
    run.log_image("samples", image, step=20)
    with pytest.raises(ValueError, match="samples must"):
        run.log_image("samples", image.astype(np.float32), step=20)
    artifacts = Path(stored(run).info.artifact_uri.removeprefix("file://"))
    (path,) = artifacts.rglob("*step*20*.png")
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), image[..., 0])


def test_a_restarted_training_goes_on_with_its_run(folder):
    first = Run(experiment({"width": 1}), folder / "output")
    first.log_metrics({"loss": 2.0}, step=1)
    first.close("KILLED")
    assert stored(first).info.status == "KILLED" and stored(first).info.run_name == "tiny/output"
    second = Run(experiment({"width": 2, "depth": 3}), folder / "output")
    second.log_metrics({"loss": 1.0}, step=2)
    assert second.id == first.id and stored(second).info.status == "RUNNING"
    assert [metric.step for metric in client().get_metric_history(second.id, "loss")] == [1, 2]
    data = stored(second).data
    assert data.params["model.width"] == "1" and data.params["model.depth"] == "3"
    assert data.tags["resumed.model.width"] == "2" and "resumed.model.depth" not in data.tags
    second.close()
    assert stored(second).info.status == "FINISHED"
    assert Run(experiment(), folder / "other").id != first.id


@pytest.mark.parametrize("lost", ["deleted", "another store", "damaged file"])
def test_a_run_that_is_gone_is_replaced_and_the_log_says_so(folder, caplog, lost):
    first = Run(experiment(), folder / "output")
    file = folder / "output" / "mlflow_run_id"
    if lost == "deleted":
        client().delete_run(first.id)
    else:
        file.write_text("" if lost == "damaged file" else "0" * 32)
    second = Run(experiment(), folder / "output")
    assert second.id != first.id and file.read_text().split()[-1] == second.id
    if lost == "deleted":
        assert file.read_text().split() == [first.id, second.id]
        assert Run(experiment(), folder / "output").id == second.id
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "a new one is started" in record.getMessage()


def test_a_folder_keeps_the_run_of_each_store(folder, empty_store, monkeypatch):
    """Whoever repeats a command elsewhere gets a run there, and finds the first one again."""
    first = Run(experiment(), folder / "output")
    first.log_metrics({"dice": 0.5}, 1)
    first.close()
    (folder / "elsewhere").mkdir()
    shutil.copy(empty_store, folder / "elsewhere/mlflow.db")
    monkeypatch.chdir(folder / "elsewhere")
    second = Run(experiment(), folder / "output")
    second.close()
    with pytest.raises(TrackingError, match="logged no dice"):
        history.read_history(folder / "output", "dice")
    monkeypatch.chdir(folder)
    assert history.read_history(folder / "output", "dice") == {1: 0.5}
    assert Run(experiment(), folder / "output").id == first.id != second.id


def test_a_store_that_cannot_be_used_is_one_sentence_within_seconds(folder):
    (folder / "file").touch()
    (folder / "text.db").write_text("no database" * 100)
    start = time.monotonic()
    for uri, message in {
        f"http://user:secret@127.0.0.1:{find_free_port()}": "can't be used",
        f"sqlite:///{folder}/file/x.db": "unable to open",
        f"sqlite:///{folder}/text.db": "not a database",
        "foo://bar": "unsupported URI",
    }.items():
        with pytest.raises(TrackingError, match=message) as caught:
            Run(experiment(uri=uri), folder / "output")
        sentence = str(caught.value)
        assert sentence.startswith(uri.replace("user:secret@", "")) and "\n" not in sentence
        assert "secret" not in sentence
    assert time.monotonic() - start < 20
    assert not (folder / "output").exists()
    Run(experiment(experiment="old"), folder / "output")
    client().delete_experiment(client().get_experiment_by_name("old").experiment_id)
    with pytest.raises(TrackingError, match="experiment old"):
        Run(experiment(experiment="old"), folder / "other")


def test_only_a_servers_first_answer_must_come_soon(folder, monkeypatch):
    monkeypatch.setattr(store, "FIRST_TIMEOUT", 0.5)

    def answer(handler):
        time.sleep(0 if handler.path == "/health" else 1)
        reply(handler, b"{}")

    with serve(answer) as place:
        assert history.list_runs(f"http://{place}") == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(TrackingError, match="can't be used"):
            history.list_runs(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 10


def test_a_store_that_fails_later_does_not_stop_a_training(folder, exported, caplog, monkeypatch):
    run = Run(experiment(), folder / "output")
    run.log_metrics({"loss": 3.0}, step=1)
    good = (folder / "mlflow.db").read_bytes()
    (folder / "mlflow.db").write_bytes(b"rubbish" * (len(good) // 7))
    monkeypatch.setattr(runs, "PAUSE", 0.0)
    with caplog.at_level(logging.INFO, "tfmammo"):
        run.log_metrics({"loss": 2.0}, step=2)
        run._paused_until = 0.0
        run.log_metrics({"loss": 1.0}, step=3)
        run.log_tags({"a": 1})
        run.log_image("grid", np.zeros((2, 2), np.uint8), step=3)
        assert run.register(exported, 3, {}, best=True) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "the tracking store fails, training goes on without it" in caplog.text
    assert "tfmammo-tiny got no new version; the same command registers it" in caplog.text
    (folder / "mlflow.db").write_bytes(good)
    run._paused_until = 0.0
    with caplog.at_level(logging.INFO, "tfmammo"):
        run.log_metrics({"loss": 0.5}, step=4)
    assert "answers again" in caplog.records[-1].getMessage()
    assert [metric.step for metric in client().get_metric_history(run.id, "loss")] == [1, 2, 3, 4]


def test_after_a_failure_the_store_is_left_alone_for_a_while(folder, exported):
    """A version is registered all the same, and a run ends even if metrics are refused."""
    run = Run(experiment(), folder / "output")
    run.log_metrics({"a bad name?": 1.0}, step=1)
    run.log_metrics({"loss": 1.0}, step=2)
    assert "loss" not in stored(run).data.metrics
    assert run.register(exported, 10, {}, best=True) == "1"
    run.close()  # sends what waits
    assert stored(run).data.metrics == {"loss": 1.0} and stored(run).info.status == "FINISHED"
    run.log_metrics({"another bad name?": 1.0}, step=3)
    run.close("FAILED")
    assert stored(run).info.status == "FAILED"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/can/fold0", "can/fold0"),
        ("runs/can-phantom-1a2b3c4d", "can-phantom-1a2b3c4d"),
        ("runs/cans/fold0", "can/cans/fold0"),
        ("/fold1", "can/fold1"),
        ("out", "can/out"),
    ],
)
def test_runs_of_folds_are_told_apart(folder, name):
    assert runs.make_run_name("can", Path(folder)) == name


def test_trainings_are_runs_of_an_ordinary_experiment(folder):
    """As MLflow 3.17's pages read it; without it they take runs for evaluations of agents."""
    kind = "mlflow.experimentKind"
    client().create_experiment("existing")
    client().create_experiment("ours", tags={kind: "genai_development"})
    for name in ("new", "existing", "ours"):
        Run(experiment(experiment=name), folder / name)
        expected = "genai_development" if name == "ours" else "custom_model_development"
        assert client().get_experiment_by_name(name).tags[kind] == expected


def test_an_export_that_is_registered_again_stays_one_version(folder, tmp_path):
    """Its description is the card; patients are counted, not named."""
    patients = ["0123456789ab", "ba9876543210"]
    data = {"name": "inbreast", "size": 4, "frame": "square", "split": "patient"}
    card = {"name": "tiny", "id": "c0ffee" * 5, "step": 1500, "train_patients": patients}
    card |= {"metrics": {"dice": 0.87654}, "config": {"data": data}, "git_commit": "abc123"}
    exported = export(make_model(), tmp_path / "export", card)
    run = Run(experiment(), folder / "output")
    assert run.register(exported, 1500, {}, best=False) == "1"
    # killed before it was noted: the alias, comes now
    assert run.register(exported, 1500, {}, best=True) == "1"
    assert client().get_model_version_by_alias("tfmammo-tiny", "best").version == 1
    assert len(client().search_model_versions("name = 'tfmammo-tiny'")) == 1
    text = client().get_model_version("tfmammo-tiny", "1").description
    for said in (
        "step 1,500",
        "not for diagnosis",
        "inbreast",
        "2 patients",
        "dice 0.8765",
        "abc123",
    ):
        assert said in text
    assert "0123456789ab" not in text


def test_a_run_whose_start_fails_is_ended(folder, monkeypatch):
    def refuse(*_):
        raise OSError("no parameters today")

    monkeypatch.setattr(Run, "_send_parameters", refuse)
    with pytest.raises(TrackingError, match="no parameters today"):
        Run(experiment(), folder / "output")
    recorded = client().search_runs([client().get_experiment_by_name("tfmammo").experiment_id])
    assert [run.info.status for run in recorded] == ["FAILED"]


def test_a_store_that_another_process_holds_is_waited_for_and_not_for_ever(folder, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE", 0.2)
    with store.hold_store(store_uri()), pytest.raises(TrackingError, match="mlflow.db.lock"):
        Run(experiment(), folder / "output")


def test_what_is_fetched_from_a_server_is_fetched_once(folder, exported, monkeypatch):
    fetched = []

    def download(location, dst_path, tracking_uri):
        fetched.append(dst_path)
        shutil.copytree(exported, Path(dst_path) / "model")

    monkeypatch.setattr(models, "download_artifacts", download)
    monkeypatch.setattr(models, "locate_artifacts", lambda *_: "mlflow-artifacts:/1/abc/model")
    monkeypatch.setattr(models, "_copies", {})
    removed = []
    monkeypatch.setattr(models.atexit, "register", lambda call, path, **_: removed.append(path))
    assert resolve("models:/tfmammo-tiny@best") == resolve("models:/tfmammo-tiny@best")
    assert len(fetched) == 1 and removed == fetched
    shutil.rmtree(fetched[0])


def test_versions_carry_tags_and_best_moves(folder, exported):
    run = Run(experiment(), folder / "output")
    assert run.register(exported, 500, {"validation_dice": 0.71234567}, best=True) == "1"
    assert run.register(exported, 1000, {"validation_dice": 0.7}, best=False) == "2"
    version = client().get_model_version_by_alias("tfmammo-tiny", "best")
    assert version.version == 1 and version.run_id == run.id and version.status == "READY"
    origin = {"git_commit": "c0ffee", "data_fingerprint": "0123456789ab"}
    assert version.tags == origin | {"step": "500", "validation_dice": "0.712346"}
    assert run.register(exported, 1500, {"validation_dice": 0.8}, best=True) == "3"
    assert client().get_model_version_by_alias("tfmammo-tiny", "best").version == 3


def test_another_runs_best_stays_until_it_is_compared(folder, exported, caplog):
    first = Run(experiment(), folder / "one")
    second = Run(experiment(), folder / "other")
    assert first.register(exported, 10, {}, best=True) == "1"
    with caplog.at_level("INFO"):
        assert second.register(exported, 10, {}, best=True) == "2"
    assert client().get_model_version_by_alias("tfmammo-tiny", "best").version == 1
    assert "tfmammo registry promote --model tfmammo-tiny --candidate 2" in caplog.text
    detector = {"functions": {"detect": {"inputs": {"image": {}}, "outputs": {"boxes": {}}}}}
    assert "promote" not in runs._advise("tfmammo-ssd", "2", detector)
    client().delete_registered_model_alias("tfmammo-tiny", "best")
    second.register(exported, 20, {}, best=True)
    assert client().get_model_version_by_alias("tfmammo-tiny", "best").version == 3


def test_two_trainings_may_make_a_registered_model_at_once(folder, exported, monkeypatch):
    run = Run(experiment(), folder / "output")
    client().create_registered_model("tfmammo-tiny")  # by the other one, after this one looked
    monkeypatch.setattr(mlflow.MlflowClient, "search_registered_models", lambda *_, **__: [])
    assert run.register(exported, 1, {}, best=False) == "1"


def test_a_version_keeps_its_weights_when_a_resumed_training_registers_the_same_step(
    folder, exported, tmp_path
):
    run = Run(experiment(), folder / "output")
    run.register(exported, 500, {}, best=False)
    run.register(export(make_model(), tmp_path / "other", {}), 500, {}, best=False)
    batch = np.ones((1, 4, 4, 1), np.float32)
    first, second = (
        load(resolve(f"models:/tfmammo-tiny/{version}"), "inverter")(batch)["mask"]
        for version in (1, 2)
    )
    np.testing.assert_array_equal(first, load(exported, "inverter")(batch)["mask"])
    assert not np.allclose(first, second)


def test_a_registered_model_is_text_and_saved_models_without_pickle(folder, exported):
    run = Run(experiment(), folder / "output")
    run.register(exported, 1, {}, best=True)
    model = resolve("models:/tfmammo-tiny@best").parents[1]
    kinds = {path.suffix for path in model.rglob("*") if path.is_file()}
    text = {".py", ".json", ".yaml", ".txt", ""}
    assert kinds <= text | {".pb", ".index", ".data-00000-of-00001"}
    assert (model / NETWORKS.name).read_text() == NETWORKS.read_text()
    requirements = (model / "requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in requirements) == ["mlflow", "numpy", "tensorflow"]
    signature = mlflow.models.Model.load(str(model)).signature
    (input_spec,), (parameter,) = signature.inputs.inputs, signature.params.params
    assert (input_spec.shape, input_spec.name) == ((-1, 4, 4, 1), None)
    assert signature.outputs.inputs[0].name == "mask"
    assert (parameter.name, parameter.default) == ("network", "inverter")


def test_handles_in_the_store_lead_to_the_export(folder, exported, monkeypatch):
    (folder / "elsewhere").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").touch()
    monkeypatch.chdir(folder / "elsewhere")
    uri = f"sqlite:///{folder}/mlflow.db"
    run = Run(experiment(uri=uri), folder / "output")
    with pytest.raises(ExportError, match="contains no export"):
        run.register(folder / "output", 1, {}, best=False)
    assert run.register(exported, 500, {}, best=True) == "1"
    batch = np.random.default_rng(0).random((2, 4, 4, 1), np.float32)
    expected = load(exported, "inverter")(batch)["mask"]
    (artifact,) = [item.path for item in client(uri).list_artifacts(run.id)]
    of_run = f"runs:/{run.id}/{artifact}"
    for handle in ("models:/tfmammo-tiny@best", "models:/tfmammo-tiny/1", of_run):
        found = load(resolve(handle, uri), "inverter")(batch)["mask"]
        np.testing.assert_array_equal(found, expected)
    assert list((folder / "elsewhere").iterdir()) == []
    models_gone = ("models:/tfmammo-tiny/2", "models:/tfmammo-tiny@worst", "models:/other@best")
    for handle in (*models_gone, "runs:/0/x", "models:/"):
        with pytest.raises(TrackingError, match=f"^{handle}: can't be fetched from sqlite:"):
            resolve(handle, uri)
    with pytest.raises(TrackingError, match="^sqlite:.*no such MLflow store"):
        resolve("models:/tfmammo-tiny@best", f"sqlite:///{folder}/mlflow.db/x.db")
    client(uri).log_artifacts(run.id, str(folder / "notes"), "notes")
    with pytest.raises(TrackingError, match="notes: contains no exports"):
        resolve(f"runs:/{run.id}/notes", uri)


def test_local_handles(exported, tmp_path, monkeypatch):
    output = tmp_path / "output"
    shutil.copytree(exported, output / "export")
    for handle in (output, output / "export", output / "export" / "inverter", str(output)):
        assert resolve(handle) == output / "export"
    monkeypatch.chdir(output / "export")
    assert resolve(".") == Path(".")
    monkeypatch.chdir(output)
    assert resolve(".") == Path("export")
    (output / "export").rename(output / ".export.old")  # what a crash between two moves leaves
    assert resolve(output) == resolve(output / "export") == output / ".export.old"
    with pytest.raises(TrackingError, match="^nowhere: "):
        resolve("nowhere")


def test_the_commit_of_a_checkout(tmp_path):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b.org"]
        done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    file = tmp_path / "code.py"
    file.write_text("a = 1")
    git("init")
    assert read_git_state(file) == {}
    git("add", "code.py")
    git("commit", "-m", "first")
    (tmp_path / "untracked.py").touch()
    for text, dirty in (("a = 1", "false"), ("a = 2", "true")):
        file.write_text(text)
        expected = {"git_commit": git("rev-parse", "HEAD"), "git_dirty": dirty}
        assert read_git_state(file) == expected
    assert read_git_state(tmp_path / "untracked.py") == {}


@pytest.mark.parametrize("wanted", [True, False])
def test_system_metrics_are_sampled_where_wanted(folder, monkeypatch, wanted):
    sampled = mock.create_autospec(runs.SystemMetricsMonitor)
    monkeypatch.setattr(runs, "SystemMetricsMonitor", sampled)
    run = Run(experiment(system_metrics=wanted), folder / "output")
    run.close()
    where = mock.call(run.id, resume_logging=True, tracking_uri=run.uri)
    assert sampled.mock_calls == [where, mock.call().start(), mock.call().finish()] * wanted


@pytest.mark.long
def test_a_server_that_goes_away(folder, exported, caplog):
    port = str(find_free_port())
    uri = f"http://127.0.0.1:{port}"
    options = ["server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    options += ["--artifacts-destination", str(folder / "artifacts")]
    options += ["--host", "127.0.0.1", "--port", port]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with run_mlflow(folder, f"{uri}/health", *options, **quiet):
        run = Run(experiment(uri=uri), folder / "output")
        run.log_metrics({"loss": 3.0}, step=1)
        assert client(uri).get_run(run.id).data.metrics == {"loss": 3.0}
        assert run.register(exported, 1, {"validation_dice": 0.5}, best=True) == "1"
        batch = np.random.default_rng(0).random((2, 4, 4, 1), np.float32)
        fetched = load(resolve("models:/tfmammo-tiny@best", uri), "inverter")(batch)["mask"]
        np.testing.assert_array_equal(fetched, load(exported, "inverter")(batch)["mask"])
        assert Run(experiment(uri=uri), folder / "output").id == run.id
    start = time.monotonic()
    with caplog.at_level(logging.INFO, "tfmammo"):
        run.log_metrics({"loss": 2.0}, step=2)
        run.log_image("grid", np.zeros((2, 2), np.uint8), step=2)
        run.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"] and uri in caplog.text
    assert time.monotonic() - start < 30


@pytest.mark.long
def test_two_trainings_that_start_at_once_share_a_new_store(tmp_path):
    program = """
import sys
from pathlib import Path
from tfmammo.config import Experiment, TrackingConfig
from tfmammo.tracking.runs import Run
output = Path(sys.argv[1])
output.mkdir()
tracking = TrackingConfig(system_metrics=False)
Run(Experiment[dict](name="tiny", tracking=tracking, model={}), output).close()
"""
    command = [sys.executable, "-c", program]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    options = {"cwd": tmp_path, "env": environment, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, name], **options) for name in ("first", "second")]
    for process in both:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    ids = {(tmp_path / name / "mlflow_run_id").read_text() for name in ("first", "second")}
    assert len(ids) == 2


def test_a_folder_becomes_a_run_of_its_own(folder):
    (folder / "judged").mkdir()
    (folder / "judged" / "table.md").write_text("| CAN |")
    uri = store_uri()
    parameters = {"data": {"size": 64}, "models": {"CAN + CRF": "run"}, "tracking_uri": uri}
    metrics = {"unseen/CAN + post-processing/dice": 71.8, "unseen/CAN/mcc": float("nan")}
    runs.log_folder(folder / "judged", uri, "tfmammo-evaluation", parameters, metrics)
    kept = client().get_experiment_by_name("tfmammo-evaluation").experiment_id
    (run,) = client().search_runs([kept])
    assert run.info.run_name == "judged" and run.info.status == "FINISHED"
    assert run.data.params == {"data.size": "64", "models.CAN _ CRF": "run"}
    assert run.data.metrics == {"unseen/CAN _ post-processing/dice": 71.8}
    assert Path(run.info.artifact_uri.removeprefix("file://"), "table.md").read_text() == "| CAN |"
    with pytest.raises(TrackingError, match="unsupported URI"):
        runs.log_folder(folder / "judged", "foo://bar", "x", {}, {})


def test_a_folder_that_can_not_be_logged_is_a_failed_run(folder):
    with pytest.raises(TrackingError, match="a//b"):
        runs.log_folder(folder / "judged", store_uri(), "tfmammo", {}, {"a//b": 1.0})
    recorded = client().search_runs([client().get_experiment_by_name("tfmammo").experiment_id])
    assert [run.info.status for run in recorded] == ["FAILED"]


def test_the_history_of_a_run(folder):
    run = Run(experiment(), folder / "output")
    for step, value in ((1, 0.5), (2, 0.25), (2, 0.125)):
        run.log_metrics({"dice": value}, step)
        time.sleep(0.002)  # so that the later one of two values for a step is known
    run.close()
    assert history.read_history(folder / "output", "dice") == {1: 0.5, 2: 0.125}
    with pytest.raises(TrackingError, match="output: its run logged no l1"):
        history.read_history(folder / "output", "l1")
    with pytest.raises(TrackingError, match="nowhere: "):
        history.read_history(folder / "nowhere", "dice")


def test_a_study_has_one_run_that_its_trainings_are_shown_under(folder):
    config = TrackingConfig(uri=store_uri(), system_metrics=False)
    parent = runs.open_parent_run(folder / "study", config)
    assert runs.open_parent_run(folder / "study", config) == parent  # the folder knows it
    child = Run(experiment(parent=parent), folder / "child")
    child.close()
    (folder / "report").mkdir()
    (folder / "report/table.md").write_text("a table")
    for _ in range(2):  # a study that is reported again
        values = {"a": 1}, {"recall": 0.5}
        runs.log_folder(folder / "report", store_uri(), config.experiment, *values, parent)
    assert stored(child).data.tags["mlflow.parentRunId"] == parent
    run = client().get_run(parent)
    assert run.info.status == "FINISHED"
    assert (run.data.params["a"], run.data.metrics["recall"]) == ("1", 0.5)
    assert [file.path for file in client().list_artifacts(parent)] == ["table.md"]


def test_a_look_up_makes_no_store_and_names_those_above(folder, tmp_path, monkeypatch):
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    above = f"a folder above has sqlite:///{tmp_path}/mlflow.db: MLFLOW_TRACKING_URI chooses it"
    for look_up in (lambda: resolve("models:/tfmammo-can@best"), history.list_runs):
        with pytest.raises(TrackingError, match=f"no such MLflow store; {above}"):
            look_up()
    assert not list((tmp_path / "deep/er").iterdir())
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "deep/er")
    with pytest.raises(TrackingError, match=f"can't be fetched.*{above}"):
        resolve("models:/tfmammo-can@best")
    with pytest.raises(TrackingError, match="can't be fetched") as raised:
        resolve("models:/tfmammo-can@best", f"sqlite:///{tmp_path}/mlflow.db")
    assert "folder above" not in str(raised.value)


def test_runs_are_listed_with_their_store(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run = Run(experiment(), folder / "tiny/fold0")
    run.log_tags({runs.MONITOR: "dice"})
    for step, value in ((1, 0.5), (2, 0.625)):
        run.log_metrics({"validation_dice": value}, step)
    run.close()
    Run(experiment(), folder / "tiny/fold1").close("KILLED")
    listed = history.list_runs()
    shown = [[row[key] for key in ("run", "status", "result")] for row in listed]
    assert shown == [["tiny/fold1", "killed", ""], ["tiny/fold0", "finished", "dice 0.6250"]]
    assert history.read_monitor(folder / "tiny/fold0") == ("dice", {1: 0.5, 2: 0.625})
    listing.main([])
    said = capsys.readouterr().out
    assert "2 runs in sqlite:///" in said and listed[0]["id"] in said

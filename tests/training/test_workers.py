"""Several workers as one: real processes on this machine, against one process; stopped,
killed and resumed.
"""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
import tensorflow as tf

from tests.commands import refuse
from tests.ports import find_free_ports
from tfmammo import cli
from tfmammo import config as configuration
from tfmammo.config import TrainingConfig
from tfmammo.data import datasets
from tfmammo.data.pipeline import batches
from tfmammo.errors import ConfigError, WorkerError
from tfmammo.models.can import CAN, CANConfig
from tfmammo.tracking.export import read_card
from tfmammo.training import loop, script, workers

OVERRIDES = ["data.size=32", "data.phantoms=12", "training.precision=float32"]
OVERRIDES += ["training.steps_per_loop=1", "training.checkpoint_every=2", "training.batch_size=2"]
OVERRIDES += ["training.validate_every=1000000", "training.grid_every=1000000"]
OVERRIDES += ["tracking.system_metrics=false", "tracking.register_models=false"]
OVERRIDES += ["model.filters=[4,8]", "model.discriminator_filters=4", "model.dropout=0"]
FOREVER = 1_000_000  # steps


def tf_config(index, *ports, kind="worker", cluster=None):
    """TF_CONFIG of one worker on this machine."""
    cluster = cluster or {"worker": [f"localhost:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@contextmanager
def running(repository, folder, uri, steps, count=2):
    """Run one training in `count` processes; yield them, the chief first, and end what is left."""
    ports = find_free_ports(count)
    overrides = [f"training.steps={steps}", "training.strategy=multi_worker", f"tracking.uri={uri}"]
    command = [sys.executable, str(repository / "train/can.py"), "--output", "run"]
    command += ["--config", str(repository / "configs/can.yaml"), "--set", *OVERRIDES, *overrides]
    processes = []
    for index in range(count):
        own = {"TF_CONFIG": tf_config(index, *ports), "TF_NUM_INTRAOP_THREADS": "1"}
        with (folder / f"{index}.log").open("w") as log:
            options = {"cwd": folder, "env": {**os.environ, **own}, "stdout": log, "stderr": log}
            processes.append(subprocess.Popen(command, **options))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ended(processes, folder, seconds=600):
    """Exit codes of all, and what they said."""
    codes = [process.wait(seconds) for process in processes]
    return codes, [(folder / f"{index}.log").read_text() for index in range(len(processes))]


def saved_step(folder):
    latest = tf.train.latest_checkpoint(str(folder / "run/checkpoints"))
    return int(latest.rsplit("-", 1)[1]) if latest else 0


def wait_for_progress(folder, processes):
    """Until a checkpoint is there that was not before."""
    before = saved_step(folder)
    deadline = time.monotonic() + 600
    while saved_step(folder) <= before:
        assert all(process.poll() is None for process in processes), ended(processes, folder)[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


LOSSES = ("_loss", "image_l1", "mask_l2")


def history(uri, output):
    """{loss: [(step, value), ...]} of a run."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    run = (output / "mlflow_run_id").read_text().strip()
    names = [name for name in client.get_run(run).data.metrics if name.endswith(LOSSES)]
    return {
        name: sorted((found.step, found.value) for found in client.get_metric_history(run, name))
        for name in names
    }


def weights(output):
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(output / "checkpoints")))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith(("network_", "optimizer_"))
    }


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_workers_are_one_process_with_the_whole_batch_and_resume(
    repository, tmp_path, tracking_uri
):
    for steps in (3, 6):  # the second call goes on where the first ended
        with running(repository, tmp_path, tracking_uri, steps) as processes:
            codes, said = ended(processes, tmp_path)
        assert codes == [0, 0], said
    assert all("from step 3 to step 6" in one for one in said)
    overrides = [*OVERRIDES, "training.steps=6", f"tracking.uri={tracking_uri}"]
    experiment = configuration.load(repository / "configs/can.yaml", overrides, CANConfig)
    metrics = loop.Training(
        lambda: CAN(experiment.model, 32),
        experiment,
        *datasets.open_subsets(experiment.data),
        tmp_path / "one",
        script.compute_validation_metrics,
        monitor="dice",
    ).fit()
    one, two = (history(tracking_uri, tmp_path / name) for name in ("one", "run"))
    assert len(one) == 5 and one.keys() == two.keys()
    for name, found in one.items():
        assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose(two[name], found, rtol=1e-5, atol=1e-6, err_msg=name)
    expected, found = (weights(tmp_path / name) for name in ("one", "run"))
    assert expected.keys() == found.keys() and any("optimizer_generator" in n for n in expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    card = read_card(tmp_path / "run/export")
    assert card["step"] == 6 and card["metrics"]["dice"] == pytest.approx(metrics["dice"], abs=0.01)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, empty_store):
    """The next three tests leave each other this folder: killed, stopped, finished."""
    folder = tmp_path_factory.mktemp("workers")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    return folder


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.nightly)])
def test_when_a_worker_is_killed_the_others_end_and_say_so(repository, stopped, victim):
    with running(repository, stopped, f"sqlite:///{stopped}/mlflow.db", FOREVER) as processes:
        wait_for_progress(stopped, processes)
        processes[victim].kill()
        start = time.monotonic()
        codes, said = ended(processes, stopped)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 2, said
    assert time.monotonic() - start < 120
    last = said[1 - victim].strip().splitlines()[-1]
    assert last.startswith(f"error: worker {victim} is gone")
    assert "the same command on all 2 workers goes on from the last checkpoint" in last


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_stop_signal_to_one_stops_all_in_the_same_step(repository, stopped):
    with running(repository, stopped, f"sqlite:///{stopped}/mlflow.db", FOREVER) as processes:
        wait_for_progress(stopped, processes)
        processes[1].terminate()
        codes, said = ended(processes, stopped)
    assert codes == [128 + signal.SIGTERM] * 2, said
    where = [
        next(line for line in one.splitlines() if "stopped at step" in line).partition("stopped")[2]
        for one in said
    ]
    assert where[0] == where[1] and f"at step {saved_step(stopped):,}," in where[0]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_what_was_killed_and_stopped_is_finished_by_another_number_of_workers(repository, stopped):
    if not saved_step(stopped):
        pytest.skip("goes on from what the tests before it leave")
    steps = saved_step(stopped) + 2
    store = f"sqlite:///{stopped}/mlflow.db"
    with running(repository, stopped, store, steps, count=1) as processes:
        codes, said = ended(processes, stopped)
    assert codes == [0], said
    assert f"from step {steps - 2:,} to step {steps:,}" in said[0]
    assert read_card(stopped / "run/export")["step"] == steps


WITH_CHIEF = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
WITHOUT = {"worker": ["b:2", "c:3"]}


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "count", "is_chief"),
    [
        (WITH_CHIEF, "worker", 0, 3, False),
        (WITH_CHIEF, "chief", 0, 3, True),
        (WITHOUT, "worker", 0, 2, True),
        (WITHOUT, "worker", 1, 2, False),
    ],
)
def test_a_strategy_says_who_the_workers_are(monkeypatch, cluster, kind, index, count, is_chief):
    class Joined:
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster), task_type=kind, task_id=index
        )

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", Joined)
    group = workers.WorkerGroup(Joined())
    assert (group.count, group.is_chief) == (count, is_chief)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("{", "TF_CONFIG"),
        ("[]", "TF_CONFIG"),
        ('{"task": {"type": "worker", "index": 0}}', "TF_CONFIG: cluster"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG: task"),
        (tf_config(0, cluster={"worker": ["a:1"], "ps": ["b:1"]}), "TF_CONFIG: cluster.ps"),
        (tf_config(0, cluster={"worker": ["a"]}), "TF_CONFIG: cluster.worker.0"),
        (tf_config(0, cluster={"chief": ["a:1", "b:1"]}, kind="chief"), "TF_CONFIG: "),
        (tf_config(0, 1, kind="evaluator"), "TF_CONFIG: task.type"),
        (tf_config(0, 1, kind="chief"), "TF_CONFIG: there is no chief 0"),
        (tf_config(2, 1, 2), "TF_CONFIG: there is no worker 2"),
        (None, "training.strategy=multi_worker: TF_CONFIG"),
    ],
)
def test_a_wrong_tf_config_is_one_sentence_and_exit_code_2(monkeypatch, capsys, text, key):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    assert refuse(capsys, cli.run, workers.join).startswith(f"error: {key}")


def set_slurm(monkeypatch, **values):
    """Set these variables of Slurm's; None is not set."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    for name, value in values.items():
        if value is None:
            monkeypatch.delenv(f"SLURM{name}", raising=False)
        else:
            monkeypatch.setenv(f"SLURM{name}", value)


@pytest.mark.parametrize(
    ("node", "place", "own"),
    [("n2", "1", "n2:12008"), ("n10", "0", "n10:12007"), ("b", "0", "b:12007")],
)
def test_slurm_says_who_the_workers_are(monkeypatch, node, place, own):
    """Four tasks on three nodes, and three of them, each of which is to find its own address."""
    step = {"_STEP_NUM_TASKS": "4", "_STEP_NODELIST": "n[2,10],b"}
    step |= {"_STEP_TASKS_PER_NODE": "2,1(x2)", "_JOB_ID": "32007"}
    set_slurm(monkeypatch, **step, D_NODENAME=node, _LOCALID=place)
    found = workers.read_cluster()
    # ports from 12,000 on, 32,007 being 7 more than twice 16,000
    addresses = found.jobs["worker"]
    assert sorted(addresses) == ["b:12007", "n10:12007", "n2:12007", "n2:12008"]
    assert addresses[found.task.index] == own


@pytest.mark.parametrize(
    "wrong",
    [
        {"_STEP_NUM_TASKS": None},
        {"_STEP_NODELIST": "n[2"},
        {"_STEP_NUM_TASKS": "7"},
        {"D_NODENAME": "elsewhere"},
    ],
)
def test_wrong_variables_of_slurm_are_one_sentence(monkeypatch, wrong):
    step = {"_STEP_NUM_TASKS": "2", "_STEP_NODELIST": "n[2,10]", "_STEP_TASKS_PER_NODE": "1(x2)"}
    set_slurm(monkeypatch, **(step | {"D_NODENAME": "n2", "_LOCALID": "0"} | wrong))
    with pytest.raises(ConfigError, match="Slurm"):
        workers.read_cluster()


@pytest.mark.parametrize("parts", [2, 3])
def test_shares_stand_one_behind_the_other_in_the_whole_batch(random_patches, parts):
    def draw(*part):
        return list(islice(batches(random_patches(8), 6, 0, True, 3, *part), 5))

    shares = [draw((part, parts)) for part in range(parts)]
    for step, expected in enumerate(draw()):
        for name, values in expected.items():
            joined = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(joined, values)


def test_a_process_by_itself_is_a_group(random_patches):
    group = workers.WorkerGroup(tf.distribute.get_strategy())
    assert (group.count, group.is_chief, group.gather(7).tolist()) == (1, True, [[7]])
    config = TrainingConfig(batch_size=2, accumulate=3)
    batch = next(iter(group.batches(random_patches(8), config, True, 2)))
    expected = next(iter(batches(random_patches(8), 2, 0, True, 6)))
    np.testing.assert_array_equal(batch["image"], expected["image"])
    with pytest.raises(tf.errors.UnavailableError), group.translate_errors():
        raise tf.errors.UnavailableError(None, None, "of something else")


def test_workers_that_differ_are_told(tiny_can, random_patches, monkeypatch):
    group = workers.WorkerGroup(tf.distribute.get_strategy())
    patches = random_patches(4)
    other_patches = random_patches(6)
    experiment = tiny_can()
    sent = []

    def gather(*values):
        sent.append(values)
        return np.array(sent)

    monkeypatch.setattr(group, "gather", gather)

    def agree(step, own, train):
        """As the second of two workers; the first is at step 3 of `experiment` on `patches`."""
        sent.clear()
        group.agree(3, experiment, patches)
        group.agree(step, own, train)

    agree(3, experiment, patches)
    for step, own, train, named in (
        (0, experiment, patches, "steps 0 and 3"),
        (3, tiny_can({"filters": (4, 8)}), patches, "configs"),
        # lengths and intervals decide when workers wait for each other
        (3, tiny_can(steps=6), patches, "configs"),
        (3, tiny_can(validate_every=3), patches, "configs"),
        (3, experiment, other_patches, "training patches"),
    ):
        with pytest.raises(WorkerError, match=named):
            agree(step, own, train)
    agree(3, tiny_can(devices=("CPU:0",)), patches)


UNHEALTHY = "The following tasks are unhealthy:\n/job:worker/replica:0/task:3\n"


@pytest.mark.parametrize(
    ("error", "text", "who"),
    [
        (tf.errors.UnavailableError, UNHEALTHY, "worker 3"),
        (tf.errors.UnavailableError, "target /job:chief/replica:0/task:0 while", "chief 0"),
        (tf.errors.InternalError, "Collective ops is aborted", "another worker"),
    ],
)
def test_a_lost_worker_is_named(error, text, who):
    group = workers.WorkerGroup(tf.distribute.get_strategy())
    group.count = 4
    with pytest.raises(WorkerError, match=f"^{who} is gone .* all 4 "), group.translate_errors():
        raise error(None, None, text)
    with pytest.raises(tf.errors.InvalidArgumentError), group.translate_errors():
        raise tf.errors.InvalidArgumentError(None, None, "a fault of ours")


@pytest.mark.parametrize(
    ("script", "config", "key"),
    [
        ("train/mask_rcnn.py", "mask_rcnn.yaml", "training.strategy"),
        ("evaluate/classification.py", "classification.yaml", "experiment.training.strategy"),
    ],
)
def test_scripts_of_one_process_say_so(repository, monkeypatch, capsys, script, config, key):
    words = [script, "--config", str(repository / "configs" / config)]
    monkeypatch.setattr(sys, "argv", [*words, "--set", f"{key}=multi_worker"])
    main = runpy.run_path(str(repository / script), run_name="imported")["main"]
    said = refuse(capsys, cli.run, main)
    assert said.startswith("error: training.strategy=multi_worker: ")

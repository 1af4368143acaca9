"""Many machines: this process as one of the workers of a tf.distribute.MultiWorkerMirroredStrategy.

All workers run the same command. TF_CONFIG, or else the variables of Slurm's srun, names them and
says which one this process is. Each computes the gradients of its share of every batch, and all
apply the same sum, so their weights stay equal. The first of them, the chief, also validates and
writes checkpoints, image grids, history and exports. The others wait for it in their next step,
however long that takes. All workers read its checkpoints, so all machines must see the output
folder.

TensorFlow's coordination service watches the workers: when one is gone, every operation that waits
for it fails on all others. Before all are there the service waits for up to an hour, which no
signal interrupts. So the workers meet before it starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any, Literal

import keras
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context

from tfmammo.config import Experiment, TrainingConfig, describe
from tfmammo.data.patches import PatchSource
from tfmammo.data.pipeline import batches
from tfmammo.errors import ConfigError, WorkerError
from tfmammo.nn.optimization import PIECE

log = logging.getLogger(__name__)

KEY = "training.strategy=multi_worker"
START = 600.0  # seconds for all workers to be there
# what workers send when they meet
HERE = b"tfmammo worker\n"
GO = b"go\n"
LONGEST = 64  # bytes that are read of anything that another program sends
SILENCE = 30  # seconds without a sign of life after which a worker is gone
# of Slurm's jobs, each with one of its own
FIRST_PORT = 12_000
PORTS = 16_000


class _Addresses(BaseModel):
    model_config = ConfigDict(extra="forbid")
    chief: list[str] = Field(default=[], max_length=1)
    worker: list[str] = []


class _Task(BaseModel):
    type: Literal["chief", "worker"]
    index: NonNegativeInt


class Cluster(BaseModel):
    """TF_CONFIG."""

    cluster: _Addresses
    """"host:port" of every worker, equal on all of them."""
    task: _Task
    """Which one this process is."""

    @property
    def count(self) -> int:
        """How many workers there are, including the chief."""
        return len(self.cluster.chief) + len(self.cluster.worker)

    @property
    def jobs(self) -> dict[str, list[str]]:
        """The workers' addresses by type of job, the chief's first."""
        addresses = self.cluster.model_dump()
        return {job: addresses[job] for job in addresses if addresses[job]}

    @property
    def own(self) -> str:
        """The address of this process."""
        return self.jobs[self.task.type][self.task.index]

    @property
    def is_chief(self) -> bool:
        """Whether this process is the first of the workers."""
        return self.own == next(iter(self.jobs.values()))[0]


# This process's, once it has joined.
_cluster: Cluster | None = None
_strategy: tf.distribute.Strategy | None = None


def read_cluster(environment: Mapping[str, str] = os.environ) -> Cluster:
    """Read who the workers are from TF_CONFIG, or else from Slurm's variables.

    Args:
        environment: The process's variables.

    Raises:
        ConfigError: Neither is there, or it is malformed, or it names no worker that this process
            could be.
    """
    if "TF_CONFIG" in environment:
        source = "TF_CONFIG"
        text = environment["TF_CONFIG"]
    elif "SLURM_STEP_NODELIST" in environment:
        source = "Slurm's variables"
        text = json.dumps(_slurm(environment))
    else:
        raise ConfigError(
            f"{KEY}: TF_CONFIG is not set, and srun has not started this process; one of them "
            "must name the workers"
        )
    try:
        cluster = Cluster.model_validate(json.loads(text))
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error).removeprefix('the file: ')}") from None
    except ValueError as error:
        raise ConfigError(f"{source}: is no JSON ({error})") from None
    task = cluster.task
    addresses = cluster.jobs.get(task.type, [])
    if task.index >= len(addresses):
        raise ConfigError(
            f"{source}: there is no {task.type} {task.index} among the {len(addresses)} of the "
            "cluster"
        )
    for address in chain.from_iterable(cluster.jobs.values()):
        if not re.fullmatch(r"[^\s:/]+:\d{1,5}", address):
            raise ConfigError(f'{source}: "{address}" is not of the form host:port')
    return cluster


def _slurm(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read Slurm's variables into the content of a TF_CONFIG.

    TensorFlow's SlurmClusterResolver reads the lists of nodes, but needs GPUs and sorts the nodes.
    """
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        gpus_per_node=0, gpus_per_task=0, auto_set_gpu=False
    )
    first = FIRST_PORT + int(environment.get("SLURM_JOB_ID", 0)) % PORTS
    nodes = resolver._task_configuration.items()  # in the order of Slurm's ranks
    addresses = [f"{node}:{first + place}" for node, tasks in nodes for place in range(tasks)]
    return {
        "cluster": {"worker": addresses},
        "task": {"type": "worker", "index": environment["SLURM_PROCID"]},
    }


def join(cluster: Cluster) -> tf.distribute.Strategy:
    """Become one of the workers, and wait until all are there.

    This precedes the first TensorFlow operation of the process.

    Args:
        cluster: Of `read_cluster`.

    Returns:
        The strategy, which `get_joined_strategy` returns from now on.

    Raises:
        WorkerError: Not all workers came, or this one's port can't be used.
    """
    global _cluster, _strategy
    meet(cluster)
    leader = "chief" if cluster.cluster.chief else "worker"
    context.context().configure_coordination_service(
        "standalone",
        f"/job:{leader}/replica:0/task:0",
        cluster_register_timeout_in_ms=int(START * 1000),
        heartbeat_timeout_in_ms=SILENCE * 1000,
        coordinated_jobs=[
            CoordinatedJob(name=name, num_tasks=len(addresses))
            for name, addresses in cluster.jobs.items()
        ],
    )
    gpus = len(tf.config.list_physical_devices("GPU"))
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=0 if gpus else PIECE)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs),
        task_type=cluster.task.type,
        task_id=cluster.task.index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    try:
        _strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except tf.errors.OpError as error:
        reason = str(error.message).strip().split("\n")[0][:200]
        raise WorkerError(
            f"{KEY}: {cluster.own} can't join the {cluster.count} workers ({reason})"
        ) from None
    except RuntimeError as error:
        raise WorkerError(f"{KEY}: {error}") from None
    _cluster = cluster
    # TensorFlow has just taken it, and would do nothing with it
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return _strategy


def meet(cluster: Cluster, patience: float = START) -> None:
    """Wait until all workers have started.

    The chief connects to each of the others, and releases them when all have answered.

    Args:
        cluster: Of `read_cluster`.
        patience: Seconds to wait.

    Raises:
        WorkerError: A worker did not start, or this one's port is in use.
    """
    deadline = time.monotonic() + patience
    host, _, port = cluster.own.rpartition(":")
    is_local = host == "localhost" or host.startswith("127.")  # no other machine need reach it
    try:
        server = socket.create_server((host if is_local else "", int(port)))
    except OSError as error:
        raise WorkerError(
            f"{KEY}: port {port} of this worker can't be used ({error.strerror})"
        ) from None
    if cluster.is_chief:
        server.close()  # TensorFlow would share a port that another process listens at
        others = [
            address for job in cluster.jobs.values() for address in job if address != cluster.own
        ]
        with ExitStack() as stack:
            for connection in [
                stack.enter_context(_connect(address, deadline, patience)) for address in others
            ]:
                connection.sendall(GO)
    else:
        _answer_chief(server, deadline, patience)


def _connect(address: str, deadline: float, patience: float) -> socket.socket:
    """Connect to a worker, once it answers."""
    host, _, port = address.rpartition(":")
    log.info("waiting for the worker %s", address)
    while time.monotonic() < deadline:
        with suppress(OSError), ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((host, int(port)), 5))
            if connection.makefile("rb").readline(LONGEST) == HERE:
                stack.pop_all()
                return connection
        time.sleep(0.2)
    raise WorkerError(f"{KEY}: the worker {address} did not start within {patience:g} s")


def _answer_chief(server: socket.socket, deadline: float, patience: float) -> None:
    """Answer the chief, and wait until it releases this worker."""
    with server:
        while (left := deadline - time.monotonic()) > 0:
            with suppress(OSError):
                server.settimeout(left)
                with server.accept()[0] as connection:
                    connection.settimeout(max(deadline - time.monotonic(), 0.1))
                    connection.sendall(HERE)
                    if connection.makefile("rb").readline(LONGEST) == GO:
                        return
    raise WorkerError(
        f"{KEY}: the chief has not let this worker go within {patience:g} s; are all of them "
        "running?"
    )


def get_joined_strategy() -> tf.distribute.Strategy | None:
    """Return the strategy of the workers that this process has joined, if it has."""
    return _strategy


def refuse_multi_worker(config: TrainingConfig, why: str) -> None:
    """Refuse a config that asks for several workers.

    Args:
        config: The training's.
        why: Why they can't do this training.

    Raises:
        ConfigError: It does.
    """
    if config.strategy == "multi_worker":
        raise ConfigError(f"{KEY}: {why}; leave it out")


class WorkerGroup:
    """The workers of one training; a process by itself is a group of one.

    Args:
        strategy: The training's.

    Attributes:
        strategy: The training's.
        count: How many workers there are.
        is_chief: Whether this process is the one that validates and writes.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        cluster = _cluster if strategy is _strategy else None
        self.count = cluster.count if cluster else 1
        self.is_chief = cluster.is_chief if cluster else True
        self._gather = tf.function(
            self._gather_in_graph, input_signature=[tf.TensorSpec([1], tf.int64)]
        )

    def batches(self, train: PatchSource, size: int, seed: int, augment: bool, step: int) -> Any:
        """Make this process's share of the training's batches from a step on.

        See `tfmammo.data.pipeline`.
        """
        replicas = self.strategy.num_replicas_in_sync
        if self.count == 1:
            data = batches(train, size, seed, augment, step)
            return self.strategy.experimental_distribute_dataset(data) if replicas > 1 else data

        def own(share: tf.distribute.InputContext) -> tf.data.Dataset:
            part = batches(
                train,
                size,
                seed,
                augment,
                step,
                (share.input_pipeline_id, share.num_input_pipelines),
            )
            # else all workers ask before every step whether there is a batch
            endless = tf.data.experimental.assert_cardinality(
                tf.data.experimental.INFINITE_CARDINALITY
            )
            return part.rebatch(size // replicas, drop_remainder=True).apply(endless)

        return self.strategy.distribute_datasets_from_function(own)

    def gather(self, value: int) -> list[int]:
        """Collect every worker's value, once for each of its devices, in the same order everywhere.

        All workers must call it.
        """
        if self.count == 1:
            return [value]
        return (
            self.strategy.experimental_local_results(self._gather(tf.constant([value], tf.int64)))[
                0
            ]
            .numpy()
            .tolist()
        )

    def _gather_in_graph(self, value: tf.Tensor) -> Any:
        def placed() -> tf.Tensor:
            # whose all_gather fails in graphs (TensorFlow 2.21)
            own = tf.distribute.get_replica_context()
            place = tf.one_hot(
                own.replica_id_in_sync_group, self.strategy.num_replicas_in_sync, dtype=tf.int64
            )
            return own.all_reduce(tf.distribute.ReduceOp.SUM, place * value)

        return self.strategy.run(placed)

    def wait(self) -> None:
        """Wait until all workers have come here."""
        self.gather(0)

    def agree(self, step: int, experiment: Experiment[Any], train: PatchSource) -> None:
        """Check that all workers start from the same step with the same config and patches.

        Raises:
            WorkerError: They don't.
        """
        steps = sorted(set(self.gather(step)))
        if len(steps) > 1:
            listed = " and ".join(f"{each:,}" for each in steps)
            raise WorkerError(
                f"the workers would go on from the steps {listed}; the output folder must be one "
                "that all their machines see"
            )
        # lengths and intervals too: they decide when workers wait for each other
        config = {
            "identity": experiment.identity(),
            "training": experiment.training.model_dump(mode="json", exclude={"devices"}),
            "precision": keras.config.dtype_policy().name,
        }
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        for name, fingerprint in (
            ("config", digest),
            ("training patches", train.fingerprint()),
        ):
            if len(set(self.gather(int(fingerprint[:8], 16)))) > 1:
                raise WorkerError(
                    f"the workers' {name} differ; all of them need the same command and the same "
                    "files"
                )

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn what TensorFlow raises inside when another worker is gone into a WorkerError."""
        try:
            yield
        except tf.errors.OpError as error:
            if self.count == 1 or not isinstance(error, GONE) and "ollective" not in str(error):
                raise
            log.debug("a collective operation failed", exc_info=True)
            raise WorkerError(
                f"{_name_lost_worker(error)} is gone (killed, or its machine or the network "
                "failed; what it said last tells more); once all have ended, the same command on "
                f"all {self.count} workers goes on from the last checkpoint"
            ) from None


GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def _name_lost_worker(error: tf.errors.OpError) -> str:
    """Name the worker that an error is about, as far as the error tells."""
    text = str(error)
    text = text.partition("unhealthy")[2] or text
    match = re.search(r"/job:(\w+)(?:/replica:0)?/task:(\d+)", text)
    return f"{match[1]} {match[2]}" if match else "another worker"

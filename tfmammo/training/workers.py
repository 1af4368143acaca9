"""Many machines: this process as one of the workers that train together
(tf.distribute.MultiWorkerMirroredStrategy).

All workers run the same command. TF_CONFIG, or else what Slurm's srun sets, says who they are and
which of them this one is. Each computes the gradients of its share of every batch, and all apply
the same sum, so that their weights stay equal. The first of them, the chief, also validates and
writes: checkpoints, pictures, history, exports. The others wait for it in their next step, however
long that takes; all of them read its checkpoints, so the output folder must be one that all
machines see.

TensorFlow's coordination service watches over them: when a worker is gone, every operation that
waits for it fails on all others. It does not watch before all are there, and waits for an hour that
no signal ends; so they meet before it starts.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context

from tfmammo.config import Experiment, TrainingConfig, describe
from tfmammo.data.patches import Patches
from tfmammo.data.pipeline import batches
from tfmammo.data.tfrecord import Records
from tfmammo.errors import ConfigError, WorkerError
from tfmammo.optimization import PIECE

log = logging.getLogger(__name__)

KEY = "training.strategy=multi_worker"
START = 600.0  # seconds for all workers to be there
# what workers say when they meet
HERE = b"tfmammo worker\n"
GO = b"go\n"
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
        """How many workers there are, the chief among them."""
        return len(self.cluster.chief) + len(self.cluster.worker)

    @property
    def jobs(self) -> dict[str, list[str]]:
        """Their addresses, the chief's first."""
        return {name: found for name, found in self.cluster.model_dump().items() if found}

    @property
    def own(self) -> str:
        """The address of this process."""
        return self.jobs[self.task.type][self.task.index]

    @property
    def is_chief(self) -> bool:
        """Whether it is the first of them."""
        return self.own == next(iter(self.jobs.values()))[0]


# Of this process, once it has joined.
_cluster: Cluster | None = None
_strategy: tf.distribute.Strategy | None = None


def cluster(environment: Mapping[str, str] = os.environ) -> Cluster:
    """Who the workers are: as TF_CONFIG says, else as Slurm does.

    Raises:
        ConfigError: Neither is there, or it is malformed or names no worker that this process could
            be.
    """
    if "TF_CONFIG" in environment:
        said = "TF_CONFIG"
        text = environment["TF_CONFIG"]
    elif "SLURM_STEP_NODELIST" in environment:
        said = "Slurm's variables"
        text = json.dumps(_slurm(environment))
    else:
        raise ConfigError(
            f"{KEY}: TF_CONFIG is not set, and srun has not started this process; one of them "
            "must name the workers"
        )
    try:
        found = Cluster.model_validate(json.loads(text))
    except ValidationError as error:
        raise ConfigError(f"{said}: {describe(error).removeprefix('the file: ')}") from None
    except ValueError as error:
        raise ConfigError(f"{said}: is no JSON ({error})") from None
    addresses = found.jobs.get(found.task.type, [])
    if found.task.index >= len(addresses):
        raise ConfigError(
            f"{said}: there is no {found.task.type} {found.task.index} among the {len(addresses)} "
            "of the cluster"
        )
    for address in (one for job in found.jobs.values() for one in job):
        if not re.fullmatch(r"[^\s:/]+:\d{1,5}", address):
            raise ConfigError(f'{said}: "{address}" is not of the form host:port')
    return found


def _slurm(environment: Mapping[str, str]) -> dict[str, Any]:
    """What TF_CONFIG would say.

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


def join(found: Cluster) -> tf.distribute.Strategy:
    """Become one of the workers, and wait until all are there; before the first TensorFlow
    operation of the process.

    Returns:
        The strategy, which `joined` gives from now on.

    Raises:
        WorkerError: Not all of them came, or this one's port can't be used.
    """
    global _cluster, _strategy
    meet(found)
    leader = "chief" if found.cluster.chief else "worker"
    context.context().configure_coordination_service(
        "standalone",
        f"/job:{leader}/replica:0/task:0",
        cluster_register_timeout_in_ms=int(START * 1000),
        heartbeat_timeout_in_ms=SILENCE * 1000,
        coordinated_jobs=[
            CoordinatedJob(name=name, num_tasks=len(addresses))
            for name, addresses in found.jobs.items()
        ],
    )
    gpus = len(tf.config.list_physical_devices("GPU"))
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=0 if gpus else PIECE)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(found.jobs),
        task_type=found.task.type,
        task_id=found.task.index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    try:
        _strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except tf.errors.OpError as error:
        reason = str(error.message).strip().split("\n")[0][:200]
        raise WorkerError(
            f"{KEY}: {found.own} can't join the {found.count} workers ({reason})"
        ) from None
    except RuntimeError as error:
        raise WorkerError(f"{KEY}: {error}") from None
    _cluster = found
    # TensorFlow has just taken it, and would do nothing with it
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return _strategy


def meet(found: Cluster, patience: float = START) -> None:
    """Wait until all workers have started: the chief calls each of them, and lets them go when all
    have answered.

    Args:
        patience: Seconds.

    Raises:
        WorkerError: One of them did not start, or this one's port is in use.
    """
    deadline = time.monotonic() + patience
    port = int(found.own.rpartition(":")[2])
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise WorkerError(
            f"{KEY}: port {port} of this worker can't be used ({error.strerror})"
        ) from None
    if found.is_chief:
        server.close()  # TensorFlow would share a port that somebody listens at
        others = [address for job in found.jobs.values() for address in job if address != found.own]
        with ExitStack() as stack:
            for line in [
                stack.enter_context(_called(address, deadline, patience)) for address in others
            ]:
                line.sendall(GO)
    else:
        _be_called(server, deadline, patience)


def _called(address: str, deadline: float, patience: float) -> socket.socket:
    """The line to a worker that has answered."""
    host, _, port = address.rpartition(":")
    log.info("waiting for the worker %s", address)
    while time.monotonic() < deadline:
        with suppress(OSError), ExitStack() as stack:
            line = stack.enter_context(socket.create_connection((host, int(port)), 5))
            if line.makefile("rb").readline() == HERE:
                stack.pop_all()
                return line
        time.sleep(0.2)
    raise WorkerError(f"{KEY}: the worker {address} did not start within {patience:g} s")


def _be_called(server: socket.socket, deadline: float, patience: float) -> None:
    """Answer the chief, and wait for its word."""
    with server:
        while (left := deadline - time.monotonic()) > 0:
            with suppress(OSError):
                server.settimeout(left)
                with server.accept()[0] as line:
                    line.settimeout(max(deadline - time.monotonic(), 0.1))
                    line.sendall(HERE)
                    if line.makefile("rb").readline() == GO:
                        return
    raise WorkerError(
        f"{KEY}: the chief has not let this worker go within {patience:g} s; are all of them "
        "running?"
    )


def joined() -> tf.distribute.Strategy | None:
    """The strategy of the workers that this process has joined."""
    return _strategy


def refuse(config: TrainingConfig, why: str) -> None:
    """Raise ConfigError where many workers are wanted.

    Args:
        why: This can't be done by them.
    """
    if config.strategy == "multi_worker":
        raise ConfigError(f"{KEY}: {why}; leave it out")


class Team:
    """The workers of one training; a process by itself, on however many devices, is a team of its
    own.

    Args:
        strategy: The training's. count: workers. chief: whether this process is the one that
            writes.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        found = _cluster if strategy is _strategy and _cluster else None
        self.count, self.chief = (found.count, found.is_chief) if found else (1, True)
        self._gather = tf.function(
            self._gather_in_graph, input_signature=[tf.TensorSpec([1], tf.int64)]
        )

    def batches(
        self, train: Patches | Records, size: int, seed: int, augment: bool, step: int
    ) -> Any:
        """This process's part of the training's batches from a step on; see
        `tfmammo.data.pipeline.batches`.
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
            # else all ask before every step
            endless = tf.data.experimental.assert_cardinality(
                tf.data.experimental.INFINITE_CARDINALITY
            )
            return part.rebatch(size // replicas, drop_remainder=True).apply(endless)

        return self.strategy.distribute_datasets_from_function(own)

    def gathered(self, value: int) -> list[int]:
        """Every worker's value, once for each of its devices, in the same order everywhere; all
        must call it.
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
        """Until all workers have come here."""
        self.gathered(0)

    def agree(self, step: int, experiment: Experiment[Any], train: Patches | Records) -> None:
        """Make sure that all workers start from the same place with the same work.

        Raises:
            WorkerError: They don't.
        """
        if len(steps := set(self.gathered(step))) > 1:
            found = " and ".join(f"{one:,}" for one in sorted(steps))
            raise WorkerError(
                f"the workers would go on from the steps {found}; the output folder must be one "
                "that all their machines see"
            )
        for name, fingerprint in (
            ("config", experiment.fingerprint()),
            ("training patches", train.fingerprint()),
        ):
            if len(set(self.gathered(int(fingerprint[:8], 16)))) > 1:
                raise WorkerError(
                    f"the workers' {name} differ; all of them need the same command and the same "
                    "files"
                )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What TensorFlow raises inside when another worker is gone becomes a WorkerError of one
        sentence.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if self.count == 1 or not isinstance(error, GONE) and "ollective" not in str(error):
                raise
            log.debug("a collective operation failed", exc_info=True)
            raise WorkerError(
                f"{_lost(error)} is gone (killed, or its machine or the network failed; what it "
                "said last tells more); once all have "
                f"ended, the same command on all {self.count} workers goes on from the last "
                "checkpoint"
            ) from None


GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def _lost(error: tf.errors.OpError) -> str:
    """The worker that an error is about, as far as it says."""
    text = str(error)
    found = re.findall(
        r"/job:(\w+)(?:/replica:0)?/task:(\d+)", text.partition("unhealthy")[2] or text
    )
    return f"{found[0][0]} {found[0][1]}" if found else "another worker"

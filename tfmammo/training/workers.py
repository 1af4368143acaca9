"""Many machines: this process as one of the workers of a tf.distribute.MultiWorkerMirroredStrategy.

All workers run the same command. TF_CONFIG, or else the variables of Slurm's srun, names them and
says which one this process is. Each computes the gradients of its share of every batch, and all
apply the same sum, so their weights stay equal. The first of them, the chief, also validates and
writes checkpoints, image grids, history and exports. The others wait for it in their next step,
however long that takes. All workers read its checkpoints, so all machines must see the output
folder.

TensorFlow's coordination service brings the workers together and watches them: when one is gone,
every operation that waits for it fails on all others.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError, model_validator

from tfmammo.config import Experiment, TrainingConfig, describe
from tfmammo.data.pipeline import batches
from tfmammo.data.tfrecord import PatchSource
from tfmammo.errors import ConfigError, WorkerError
from tfmammo.nn._tensorflow import hold_back_stderr
from tfmammo.nn.optimization import PIECE

log = logging.getLogger(__name__)

KEY = "training.strategy=multi_worker"
# of Slurm's jobs, each with one of its own
FIRST_PORT = 12_000
PORTS = 16_000
# what TensorFlow raises when another worker is gone
GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
Address = Annotated[str, Field(pattern=r"^[^\s:/]+:\d{1,5}$")]


class _Task(BaseModel):
    type: Literal["chief", "worker"]
    index: NonNegativeInt


class Cluster(BaseModel):
    """The content of TF_CONFIG."""

    cluster: dict[Literal["chief", "worker"], list[Address]]
    """"host:port" of every worker, equal on all of them."""
    task: _Task
    """Which one this process is."""

    @property
    def jobs(self) -> dict[str, list[str]]:
        """The workers' addresses by type of job."""
        return {job: addresses for job, addresses in self.cluster.items() if addresses}

    @model_validator(mode="after")
    def _names_this_process(self) -> Cluster:
        count = len(self.jobs.get(self.task.type, []))
        if self.task.index >= count:
            raise ValueError(
                f"there is no {self.task.type} {self.task.index} among the {count} of the cluster"
            )
        if len(self.jobs.get("chief", [])) > 1:
            raise ValueError("there can be no more than one chief")
        return self


def read_cluster() -> Cluster:
    """Read who the workers are from TF_CONFIG, or else from Slurm's variables.

    A ConfigError where neither is there, or it is malformed, or names no worker that this could be.
    """
    if "TF_CONFIG" in os.environ:
        source = "TF_CONFIG"
    elif "SLURM_STEP_NODELIST" in os.environ:
        source = "Slurm's variables"
    else:
        raise ConfigError(
            f"{KEY}: TF_CONFIG is not set, and srun has not started this process; one of them "
            "must name the workers"
        )
    try:
        if source == "TF_CONFIG":
            return Cluster.model_validate_json(os.environ["TF_CONFIG"])
        return Cluster.model_validate(_read_slurm())
    except ValidationError as error:
        reason = describe(error)
    except KeyError as error:
        reason = f"{error.args[0]} is missing"
    except (RuntimeError, ValueError) as error:  # of the resolver
        reason = str(error)
    raise ConfigError(f"{source}: {reason}")


def _read_slurm() -> dict[str, Any]:
    """Read Slurm's variables into the content of a TF_CONFIG."""
    # as many GPUs as tasks, because the resolver lists no more tasks than GPUs; nobody else asks it
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=FIRST_PORT + int(os.environ.get("SLURM_JOB_ID", 0)) % PORTS,
        gpus_per_node=int(os.environ["SLURM_STEP_NUM_TASKS"]),
        gpus_per_task=1,
        auto_set_gpu=False,
    )
    # it sorts the nodes by name, so that its places are not Slurm's ranks
    addresses = resolver.cluster_spec().job_tasks("worker")
    nodes = [address.rpartition(":")[0] for address in addresses]
    index = nodes.index(os.environ["SLURMD_NODENAME"]) + int(os.environ["SLURM_LOCALID"])
    return {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}


@functools.cache
def join() -> tf.distribute.Strategy:
    """Become one of the workers once all are there. Further calls return the same strategy.

    The first call precedes the first TensorFlow operation of the process. It is a WorkerError that
    not all workers came, or that this one's port can't be used.
    """
    cluster = read_cluster()
    task = cluster.task
    own = cluster.jobs[task.type][task.index]
    gpus = len(tf.config.list_physical_devices("GPU"))
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=0 if gpus else PIECE)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs),
        task_type=task.type,
        task_id=task.index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    log.info("%s waits for the other workers", own)
    # while TensorFlow waits, Python's handlers are not called
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with hold_back_stderr():
            return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise WorkerError(f"{KEY}: {own} can't join the workers ({reason})") from None
    finally:
        for number, handler in handlers.items():  # TensorFlow has taken SIGTERM's
            signal.signal(number, handler)


def refuse_multi_worker(config: TrainingConfig, why: str) -> None:
    """Refuse a config that asks for several workers, by a ConfigError that says why."""
    if config.strategy == "multi_worker":
        raise ConfigError(f"{KEY}: {why}; leave it out")


class WorkerGroup:
    """The workers of one training run; a process by itself is a group of one.

    Attributes:
        count: How many workers there are.
        is_chief: Whether this process is the one that validates and writes.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        self.count = 1
        self.is_chief = True
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            jobs = resolver.cluster_spec().as_dict()
            leader = ("chief" if "chief" in jobs else "worker", 0)
            self.count = sum(map(len, jobs.values()))
            self.is_chief = (resolver.task_type, resolver.task_id) == leader
        # traced once, because `gather` outside a graph traces in every call
        self._gather = tf.function(lambda values: strategy.gather(values, axis=0))

    def batches(self, train: PatchSource, config: TrainingConfig, turn: bool, step: int) -> Any:
        """Make this process's share of the run's batches from a step on, see `data.pipeline`.

        `turn` says whether to augment each draw.
        """
        size = config.batch_size
        replicas = self.strategy.num_replicas_in_sync
        make = functools.partial(batches, train, size, config.seed, turn, step * config.accumulate)
        if self.count == 1:
            data = make()
            return self.strategy.experimental_distribute_dataset(data) if replicas > 1 else data

        def make_share(share: tf.distribute.InputContext) -> tf.data.Dataset:
            part = make((share.input_pipeline_id, share.num_input_pipelines))
            # else all workers ask before every step whether there is a batch
            endless = tf.data.experimental.assert_cardinality(
                tf.data.experimental.INFINITE_CARDINALITY
            )
            return part.rebatch(size // replicas, drop_remainder=True).apply(endless)

        return self.strategy.distribute_datasets_from_function(make_share)

    def gather(self, *values: int) -> NDArray[np.int64]:
        """Collect every worker's values, int64 [workers, values]; all workers must call it."""
        own = np.array([values], np.int64)
        return own if self.count == 1 else self._gather(tf.constant(own)).numpy()

    def wait(self) -> None:
        """Wait until all workers have come here."""
        self.gather(0)

    def agree(self, step: int, experiment: Experiment[Any], train: PatchSource) -> None:
        """Check that all workers start from the same step with the same config and patches.

        Else a WorkerError.
        """
        # lengths and intervals too: they decide when workers wait for each other
        config = {
            "identity": experiment.identity(),
            "training": experiment.training.model_dump(mode="json", exclude={"devices"}),
            "precision": keras.config.dtype_policy().name,
        }
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        hashes = (int(text[:8], 16) for text in (digest, train.fingerprint()))
        steps, configs, patches = (sorted(set(values)) for values in self.gather(step, *hashes).T)
        if len(steps) > 1:
            listed = " and ".join(f"{each:,}" for each in steps)
            raise WorkerError(
                f"the workers would go on from the steps {listed}; the output folder must be one "
                "that all their machines see"
            )
        for name, found in (("configs", configs), ("training patches", patches)):
            if len(found) > 1:
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


def _name_lost_worker(error: tf.errors.OpError) -> str:
    """Name the worker that an error is about, as far as the error tells."""
    text = str(error)
    text = text.partition("unhealthy")[2] or text
    match = re.search(r"/job:(\w+)(?:/replica:0)?/task:(\d+)", text)
    return f"{match[1]} {match[2]}" if match else "another worker"

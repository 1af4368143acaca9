"""Measure the loss of speed when two workers train together, compared with two separate processes.

python benchmarks/workers.py [--model can|infilling|contextual|cgan] [--batch 4] [--rounds 5]
                             [--steps 3] [--precision float32|bfloat16]
                             [--accumulate 1] [--exchange float32|bfloat16]

Each process runs the model's training step on --batch patches, by default the paper's whole batch,
with one thread on its own core. "alone" are two separate processes. "together" are two workers with
twice the global batch, which exchange all gradients in every step over gRPC, in the numbers of
--exchange. --accumulate batches make a step, of either pair (training.accumulate). The two pairs
take turns and never run at the same time.

One JSON line: rounds, the seconds of a step [alone, together], of the slower process of each pair;
loss, the median of 1 - alone / together (wanted: at most 0.15); exchanged_mb, the gradients of a
step; cpu, the same in processor seconds, which depend less on other work of the machine; eight, the
loss of eight workers on eight machines, computed. In the ring by which they exchange, each of n
sends 2 (n - 1) / n of the gradients: 1.75 times what each of two sends. So the exchange, which is
together - alone, is taken to last 1.75 times as long. The network is taken to be as fast as this
machine's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from cases import MODELS, add_model_arguments, make_batch, parse
from processes import MeasuredProcess, serve

ADVERSARIAL = ("can", "infilling", "contextual", "cgan")


def main() -> None:
    """Print the measured line, or be one of the four processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--steps", type=int, default=3, help="steps of each pair in a round (3)")
    parser.add_argument("--accumulate", type=int, default=1, help="batches of a step (1)")
    parser.add_argument("--exchange", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--as", dest="role", choices=("alone", "together"), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=int, help=argparse.SUPPRESS)
    options = parse(parser)
    if options.model not in ADVERSARIAL:
        parser.error(f"--model: one of {', '.join(ADVERSARIAL)}, whose generator's loss is read")
    if options.role:
        serve(lambda: prepare(options))
    else:
        print(json.dumps(compare(options)))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Time both pairs in turns."""
    pairs = {role: start_pair(role) for role in ("alone", "together")}
    try:
        # The first step traces.
        megabytes = [run_steps(pair, 1)[0]["megabytes"] for pair in pairs.values()][0]
        turns = [
            {role: run_steps(pair, options.steps) for role, pair in pairs.items()}
            for _ in range(options.rounds)
        ]
    finally:
        for pair in pairs.values():
            for process in pair:
                process.process.kill()
    summaries = {}
    for clock in ("seconds", "cpu"):
        rounds = [
            [
                max(answer[clock] for answer in turn[role]) / options.steps
                for role in ("alone", "together")
            ]
            for turn in turns
        ]
        loss = statistics.median(1 - alone / together for alone, together in rounds)
        summaries[clock] = {
            "rounds": [[round(value, 3) for value in pair] for pair in rounds],
            "loss": round(loss, 3),
            "eight": {"loss": round(statistics.median(map(predict_loss, rounds)), 3)},
        }
    return {
        "benchmark": f"workers.{options.model}",
        "size": options.size,
        "batch": options.batch,
        "precision": options.precision,
        "config": options.config,
        "accumulate": options.accumulate,
        "exchange": options.exchange,
        "exchanged_mb": megabytes,
        **summaries["seconds"],
        "wanted": "<= 0.15",
        "cpu": summaries["cpu"],
    }


def predict_loss(pair: Sequence[float], workers: int = 8) -> float:
    """Compute what several workers lose from the seconds of a step of two, alone and together."""
    alone, together = pair
    sent = 2 * (workers - 1) / workers  # of the gradients, by each; two workers send all
    return 1 - alone / (alone + sent * (together - alone))


def start_pair(role: str) -> list[MeasuredProcess]:
    """Start two processes, each on its own core; they wait for a number of steps."""
    servers = [socket.create_server(("", 0)) for _ in range(2)]
    addresses = [f"localhost:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    cores = sorted(os.sched_getaffinity(0))
    pair = []
    for place in range(2):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": place}}
        environment = os.environ | {
            "TF_CONFIG": json.dumps(cluster),
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
        }
        pair.append(
            MeasuredProcess(
                *sys.argv,
                "--as",
                role,
                "--place",
                cores[place % len(cores)],
                environment=environment,
            )
        )
    return pair


def run_steps(pair: list[MeasuredProcess], steps: int) -> list[dict[str, float]]:
    """Let both processes run so many steps at the same time, and return their times."""
    for process in pair:
        process.send(steps)
    return [process.receive() for process in pair]


def prepare(options: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """Build the model of one process, and return the function from steps to their times."""
    os.sched_setaffinity(0, {options.place})
    import models  # isort: skip  # the first to import TensorFlow, because it keeps that quiet
    import keras
    import tensorflow as tf

    from tfmammo.nn import optimization
    from tfmammo.training import workers

    keras.config.set_dtype_policy(
        "mixed_bfloat16" if options.precision == "bfloat16" else "float32"
    )
    strategy = tf.distribute.get_strategy()
    if options.role == "together":
        strategy = workers.join()
    with strategy.scope():
        model = models.build_model(
            options.model, MODELS[options.model].config | options.config, options.size
        )
        accumulator = optimization.prepare_exchange(
            model.networks, model.optimizers, options.accumulate, options.exchange
        )
    batch = {name: tf.constant(value) for name, value in make_batch(options).items()}

    @tf.function
    def take_batch(is_last: bool) -> dict[str, tf.Tensor]:
        if accumulator:
            accumulator.is_last = is_last
        losses = strategy.run(model.train_step, args=(batch,))
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
            for name, loss in losses.items()
        }

    size = {"float32": 4, "bfloat16": 2}[options.exchange]
    megabytes = sum(network.count_params() for network in model.networks.values()) * size / 1e6

    def answer(steps: int) -> dict[str, float]:
        start = time.perf_counter()
        used = time.process_time()
        for _ in range(steps):
            for _batch in range(options.accumulate - 1):
                float(take_batch(False)["generator_loss"])
            float(take_batch(True)["generator_loss"])
        return {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - used,
            "megabytes": round(megabytes, 3),
        }

    return answer


if __name__ == "__main__":
    main()

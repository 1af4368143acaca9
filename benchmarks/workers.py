"""What two workers that train together lose of what two processes by themselves do at
once, each on one core of this machine.

python benchmarks/workers.py [--model can|infilling|contextual|cgan] [--batch 4] [--rounds 5]
[--steps 3] [--precision float32|bfloat16]

Both pairs run the model's training step on --batch patches for each process, by default as many as
the paper's whole batch, with one thread on a core of its own: alone, two processes that know
nothing of each other; together, two workers with a global batch of twice as much, which exchange
all gradients in every step (float32 over gRPC, twice the parameters' bytes a worker). The pairs
take turns, A B A B, never at once.

One JSON line: rounds, seconds of a step [alone, together], the slower of each pair; loss, the
median of 1 - alone / together (wanted: at most 0.15); exchanged_mb, a step's gradients; cpu, the
same in processor seconds, which other work on the machine touches less.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from sides import Side, serve
from step import MODELS, batch_of


def main() -> None:
    """Print the measured line; or be one of the four processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=tuple(MODELS), default="can")
    parser.add_argument("--size", type=int, help="of a patch, px; the paper's")
    parser.add_argument("--batch", type=int, help="patches of each process; the paper's")
    parser.add_argument(
        "--config",
        type=json.loads,
        default={},
        metavar="JSON",
        help="the model's, where it is not the paper's",
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each pair in a round (3)")
    parser.add_argument("--as", dest="role", choices=("alone", "together"), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    model = MODELS[chosen.model]
    chosen.size = chosen.size or model.size
    chosen.batch = chosen.batch or model.batch
    serve(lambda: made(chosen)) if chosen.role else print(json.dumps(compared(chosen)))


def compared(chosen: argparse.Namespace) -> dict[str, Any]:
    """Both pairs timed in turns."""
    pairs = {role: started(role) for role in ("alone", "together")}
    try:
        megabytes = [asked(pair, 1)[0]["megabytes"] for pair in pairs.values()][0]  # traces too
        turns = [
            {role: asked(pair, chosen.steps) for role, pair in pairs.items()}
            for _ in range(chosen.rounds)
        ]
    finally:
        for side in (one for pair in pairs.values() for one in pair):
            side.process.kill()
    found = {}
    for clock in ("seconds", "cpu"):
        rounds = [
            [max(one[clock] for one in turn[role]) / chosen.steps for role in ("alone", "together")]
            for turn in turns
        ]
        lost = statistics.median(1 - alone / together for alone, together in rounds)
        found[clock] = {
            "rounds": [[round(value, 3) for value in pair] for pair in rounds],
            "loss": round(lost, 3),
        }
    return {
        "benchmark": f"workers.{chosen.model}",
        "size": chosen.size,
        "batch": chosen.batch,
        "precision": chosen.precision,
        "config": chosen.config,
        "exchanged_mb": megabytes,
        **found["seconds"],
        "wanted": "<= 0.15",
        "cpu": found["cpu"],
    }


def started(role: str) -> list[Side]:
    """Two processes, each on a core of its own, that wait for numbers of steps."""
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
            Side(
                *sys.argv,
                "--as",
                role,
                "--place",
                cores[place % len(cores)],
                environment=environment,
            )
        )
    return pair


def asked(pair: list[Side], steps: int) -> list[dict[str, float]]:
    """What both took for so many steps, done at once."""
    for side in pair:
        side.send(steps)
    return [side.receive() for side in pair]


def made(chosen: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """What one process answers: to a number of steps the seconds that they took."""
    os.sched_setaffinity(0, {chosen.place})
    import rooms  # isort: skip  # the first to import TensorFlow, because it keeps that quiet
    import keras
    import tensorflow as tf

    from tfmammo.training import workers

    keras.config.set_dtype_policy("mixed_bfloat16" if chosen.precision == "bfloat16" else "float32")
    strategy = tf.distribute.get_strategy()
    if chosen.role == "together":
        strategy = workers.join(workers.cluster())
    with strategy.scope():
        room = rooms.room_of(chosen.model, MODELS[chosen.model].config | chosen.config, chosen.size)
    batch = {name: tf.constant(value) for name, value in batch_of(chosen).items()}

    @tf.function
    def step() -> dict[str, tf.Tensor]:
        losses = strategy.run(room.train_step, args=(batch,))
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None)
            for name, loss in losses.items()
        }

    megabytes = sum(network.count_params() for network in room.networks.values()) * 4 / 1e6

    def answer(steps: int) -> dict[str, float]:
        start = time.perf_counter()
        used = time.process_time()
        for _ in range(steps):
            float(step()["generator_loss"])
        return {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - used,
            "megabytes": round(megabytes, 3),
        }

    return answer


if __name__ == "__main__":
    main()

"""What a training step does, counted from its graph: work, memory, and where it can run."""

import json
import subprocess
import sys

import pytest
import tensorflow as tf


@pytest.fixture(scope="module")
def counts(repository):
    sys.path.insert(0, str(repository / "benchmarks"))
    try:
        import counts

        return counts
    finally:
        sys.path.pop(0)


def test_work_by_hand(counts):
    kernel = tf.ones((3, 3, 4, 8))
    multiply = tf.function(lambda matrix: tf.matmul(matrix, matrix, transpose_a=True))

    def step(image, matrix):
        with tf.GradientTape() as tape:
            tape.watch(image)
            tape.watch(kernel)
            made = tf.nn.conv2d(image, kernel, 2, "SAME")
        gradients = tape.gradient(made, [image, kernel])
        tf.matmul(matrix, 2 * matrix, transpose_a=True)  # which nothing reads
        return made, *gradients, multiply(matrix)

    specs = (tf.TensorSpec((2, 16, 16, 4)), tf.TensorSpec((5, 7)))
    graph = tf.function(step).get_concrete_function(*specs).graph
    # 2 x 8 x 8 x 8 outputs of 3 x 3 x 4 products, forwards and for both gradients; 7 x 7 of 5
    products = 3 * 2 * 8 * 8 * 8 * 36 + 7 * 7 * 5
    assert sum(map(counts.count_flops, counts.walk(graph))) == 2 * products


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_no_step_does_more_than_it_did(counts, repository):
    """At most 5 % more; `python benchmarks/counts.py --write` accepts what is meant."""
    known = json.loads(counts.REFERENCE.read_text(encoding="utf-8"))
    assert set(known) == set(counts.MODELS)
    # In a process of its own: fifteen models would stay in this one's memory.
    command = [sys.executable, str(counts.REFERENCE.with_suffix(".py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["model"] for line in lines] == list(counts.MODELS)
    for now in lines:
        name = now["model"]
        before = known[name]
        assert now["without_gpu"] == now["on_cpu"] == [], name
        assert set(now["without_xla"]) <= set(before["without_xla"]), name
        for key in ("operations", "gflop", "step_mb"):
            assert now[key] <= 1.05 * before[key], f"{name}: {key}"

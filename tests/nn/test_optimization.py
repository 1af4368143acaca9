"""Adam is Keras's, minimize takes its gradient, loss scale and replicas cancel out."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.two_cpus import run_on_two_cpus
from tfmammo.nn import optimization
from tfmammo.nn.losses import log_fake, log_real
from tfmammo.nn.optimization import (
    Accumulator,
    Adam,
    build,
    call_sharing_gradients,
    count_batches,
    ends_step,
    minimize,
)

SHAPES = [(3, 4), (5,), (2, 2, 3, 1), ()]


def variables(seed=0):
    rng = np.random.default_rng(seed)
    return [keras.Variable(rng.normal(size=shape).astype(np.float32)) for shape in SHAPES]


def gradients(steps, seed=1):
    """Gradients from 1e-8 to 1e+3 in size, some of them zero."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield [
            (
                rng.normal(size=s)
                * 10.0 ** rng.integers(-8, 4, size=s)
                * rng.integers(0, 4, size=s).astype(bool)
            ).astype(np.float32)
            for s in SHAPES
        ]


def moved(optimizer, in_graph=False, steps=20):
    """Where an optimizer takes the variables, as a list of arrays after every step."""
    weights = variables()
    path = []
    optimizer.build(weights)
    apply = lambda *values: optimizer.apply(list(values), weights)  # noqa: E731
    apply = tf.function(apply) if in_graph else apply
    for step in gradients(steps):
        apply(*map(tf.constant, step))
        path.append([w.numpy() for w in weights])
    return path


@pytest.mark.parametrize(
    ("lr", "beta_1", "beta_2", "epsilon"),
    [(2e-4, 0.5, 0.999, 1e-7), (0.1, 0.9, 0.99, 1e-3), (0.01, 0.0, 0.999, 1e-8)],
)
def test_adam_equals_the_formula(lr, beta_1, beta_2, epsilon):
    w = [v.numpy().astype(np.float64) for v in variables()]
    m = [np.zeros_like(x) for x in w]
    v = [np.zeros_like(x) for x in w]
    path = moved(Adam(lr, beta_1, beta_2, epsilon))
    for t, (step, found) in enumerate(zip(gradients(20), path, strict=True), 1):
        for i, g in enumerate(step):
            m[i] = beta_1 * m[i] + (1 - beta_1) * g.astype(np.float64)
            v[i] = beta_2 * v[i] + (1 - beta_2) * g.astype(np.float64) ** 2
            factor = lr * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
            w[i] = w[i] - factor * m[i] / (np.sqrt(v[i]) + epsilon)
            np.testing.assert_allclose(found[i], w[i], rtol=1e-6, atol=5e-4 * lr)


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_schedule_moves_adam_as_keras_own(in_graph):
    """To 1e-4 of a step: 1 - beta_2 ** t alone loses four of seven digits at t = 1."""
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([5, 12], [0.1, 0.01, 0.001])
    ours, theirs = (moved(kind(rates), in_graph) for kind in (Adam, keras.optimizers.Adam))
    for a, b in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_workers_without_gpus_exchange_large_gradients_in_pieces(monkeypatch, scaled):
    # of float32 [3, 4] a row, of [2, 2, 3, 1] six of twelve, of [5] no part
    monkeypatch.setattr(optimization, "PIECE", 24)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    sizes = []
    theirs = tf.distribute.ReplicaContext.all_reduce

    def all_reduce(self, operation, values, options=None):
        sizes.extend(tuple(value.shape) for value in tf.nest.flatten(values))
        return theirs(self, operation, values, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", all_reduce)
    with strategy.scope():
        weights = variables()
        adam = Adam(1e-2)
        adam = keras.optimizers.LossScaleOptimizer(adam, initial_scale=1.0) if scaled else adam
        adam.build(weights)
    (step,) = gradients(1)
    strategy.run(tf.function(lambda: adam.apply([tf.constant(g) for g in step], weights)))
    assert sizes == [(1, 4)] * 3 + [(5,)] + [(6, 1)] * 2 + [()]
    for ours, whole in zip(weights, moved(Adam(1e-2), steps=1)[0], strict=True):
        np.testing.assert_array_equal(ours.numpy(), whole)


@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**20])
def test_a_scaled_loss_makes_the_same_step(scale):
    x = np.array([[1, -2], [0.5, 3]], np.float32)
    weights = []
    for scaled in (False, True):
        network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh")])
        rng = np.random.default_rng(0)
        network.set_weights([rng.normal(size=weight.shape) for weight in network.get_weights()])
        optimizer = Adam(0.1)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=scale)
        optimizer.build(network.trainable_variables)
        for _ in range(5):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(network(x) ** 2)
            minimize(loss, network, optimizer, tape)
        weights.append(network.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_steps_batches_update_by_the_mean_of_their_gradients(policy):
    keras.config.set_dtype_policy(policy)
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="float32")])
    network.trainable_variables[0].assign([[1.0], [2.0]])
    optimizer = build(Adam(0.1, 0.5), network)
    accumulator = Accumulator({"a": network}, {"a": optimizer}, 3)
    before = network.get_weights()

    def take(*row):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(tf.constant([row])))  # its gradients are the row, and 1
        minimize(loss, network, optimizer, tape)

    counts = []
    for is_last, row in [(False, (1.0, -4.0)), (False, (2.0, 0.5)), (True, (3.0, 2.0))]:
        np.testing.assert_array_equal(network.get_weights()[0], before[0])
        accumulator.is_last = is_last
        counts.append(int(count_batches(optimizer)))
        assert ends_step(optimizer) == is_last
        take(*row)
        accumulator.done.assign(0 if is_last else accumulator.done + 1)
    # Adam's first step: m / (1 - beta_1) and v / (1 - beta_2) are the mean gradient and its square
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    np.testing.assert_allclose(inner._momentums[0].numpy(), [[0.5 * 2], [0.5 * -0.5]], rtol=1e-6)
    np.testing.assert_allclose(network.get_weights()[0], [[0.9], [2.1]], rtol=1e-5)
    assert counts == [0, 1, 2] and int(count_batches(inner)) == 3
    # the sums begin anew
    for is_last in (False, False, True):
        accumulator.is_last = is_last
        take(0.0, 0.0)
    np.testing.assert_allclose(inner._momentums[0].numpy(), [[0.25 * 2], [0.25 * -0.5]], rtol=1e-6)


TWO_REPLICAS = '''
from tfmammo.nn.optimization import Adam, build, minimize, prepare_exchange

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
local = lambda strategy, value: [np.array(one).tolist() for one in strategy.experimental_local_results(value)]

def share(strategy, values):
    """Each replica's share of the rows."""
    rows = len(values) // strategy.num_replicas_in_sync
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(values[rows * context.replica_id_in_sync_group:][:rows]))

def train(strategy, steps, batches):
    """Weights after some steps on the mean square of a layer's output; X is shared by batches and replicas."""
    with strategy.scope():
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        for seed, weight in enumerate(network.trainable_variables):
            weight.assign(np.random.default_rng(seed).normal(size=weight.shape))
        optimizer = build(Adam(0.05, 0.5), network)
        accumulator = prepare_exchange({"a": network}, {"a": optimizer}, batches, "float32")

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((network(x) - 1.0) ** 2)
        minimize(loss, network, optimizer, tape)

    @tf.function
    def take(values, is_last):
        if accumulator:
            accumulator.is_last = is_last
        strategy.run(step, args=(values,))

    parts = [share(strategy, part) for part in np.split(X, batches)]
    for _ in range(steps):
        for number, part in enumerate(parts, 1):
            take(part, number == batches)
    return [w.numpy().tolist() for w in network.trainable_variables], local(strategy, optimizer.iterations.value)

def overflow(strategy, chosen, is_late):
    """What is left where a gradient of one replica is beyond float16: that of the kernel, which
    comes first, or of the bias alone: each row's is finite, their sum is not."""
    with strategy.scope():
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        optimizer = build(Adam(0.05, 0.5), network)
    before = network.get_weights()

    def step(x):
        with tf.GradientTape() as tape:
            y = tf.cast(network(0 * x if is_late else x), tf.float32)
            loss = x[0, 0] * tf.reduce_mean(y) if is_late else tf.reduce_mean(y ** 2)
        minimize(loss, network, optimizer, tape)

    run = tf.function(lambda x: strategy.run(step, args=(x,)))
    for large in (10.0, 20.0, 0.1) if is_late else (1e4, 1e4, 1.0):
        rows = np.full((4, 3), 0.1, np.float32)
        rows[2 * chosen:][:2] = large
        run(share(strategy, rows))
    return {
        "finite": all(bool(np.isfinite(w).all()) for w in network.get_weights()),
        "moved": max(float(np.abs(a - b).max()) for a, b in zip(before, network.get_weights())),
        "iterations": local(strategy, optimizer.iterations.value),
        "scale": local(strategy, optimizer.dynamic_scale.value),
    }

def exchange(strategy, dtype):
    """The sum of 1.001 of one replica and 2.002 of the other."""
    with strategy.scope():
        variable = keras.Variable([0.0])
        optimizer = Adam()
        optimizer.build([variable])
        optimizer.exchange = dtype

    def add():
        own = tf.distribute.get_replica_context().replica_id_in_sync_group
        gradient = tf.constant([1.001]) * tf.cast(own + 1, tf.float32)
        return tf.cast(optimizer._all_reduce_sum_gradients([(gradient, variable)])[0][0], tf.float32)

    return local(strategy, tf.function(lambda: strategy.run(add))())

one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
results = {
    "whole": [train(strategy, 20, 1) for strategy in (one, two)],
    "accumulated": [train(strategy, 20, 2) for strategy in (one, two)],
    "exchanged": {dtype: exchange(two, dtype) for dtype in ("float32", "bfloat16")},
}
keras.config.set_dtype_policy("mixed_float16")
results["overflows"] = [[overflow(two, chosen, is_late) for chosen in (0, 1)] for is_late in (False, True)]
print(json.dumps(results))
'''  # noqa: E501


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory):
    """What TWO_REPLICAS prints."""
    return run_on_two_cpus(TWO_REPLICAS, tmp_path_factory.mktemp("replicas"))


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["whole", "accumulated"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_adam_and_minimize_agree_on_one_and_on_two_replicas(two_replicas, replicas, batches):
    """And a step of two batches is one of twice the size."""
    weights, iterations = two_replicas[batches][replicas - 1]
    assert iterations == [20] * replicas
    for a, b in zip(weights, two_replicas["whole"][0][0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_gradients_are_exchanged_in_the_chosen_numbers(two_replicas):
    assert two_replicas["exchanged"]["float32"] == pytest.approx(np.full((2, 1), 3.003), abs=1e-6)
    # 1.001 and 2.002 are 1 and 2 with eight bits
    assert two_replicas["exchanged"]["bfloat16"] == [[3.0], [3.0]]


@pytest.mark.slow
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("chosen", [0, 1])
def test_an_overflow_on_one_replica_skips_the_step_on_all(two_replicas, chosen, is_late):
    result = two_replicas["overflows"][is_late][chosen]
    assert result["finite"] and result["iterations"] == [1, 1] and result["scale"] == [2.0**13] * 2
    assert 0.01 < result["moved"] < 0.1  # the third step alone, of 0.05


# One pass back for several losses


def losses_of(logits, real, name):
    """Compute what generator and discriminator minimise of logits for a fake and a real sample."""
    average = "losses" if name.startswith("losses") else "responses"
    adversarial = {
        "as printed": log_fake(logits, average),
        "least squares": tf.reduce_mean((logits - 1) ** 2),  # no multiple of the discriminator's
    }.get(name.split(", ")[-1], -log_real(logits, average))
    factor = 0.5 if name == "half" else 1.0
    return adversarial, -factor * (log_real(real, average) + log_fake(logits, average))


def duel(name, offset, shared, graph=False, samples=1, batch_norm=False, reverse=False):
    """Compute the gradients of a small generator and a small discriminator of two samples."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.BatchNormalization()] * batch_norm + [keras.layers.LeakyReLU()]
    discriminator = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), *hidden, keras.layers.Conv2D(1, 3)]
    )
    generator = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same", activation="tanh")]
    )
    call = call_sharing_gradients if shared else lambda network, x: network(x, training=True)
    x = tf.constant(np.random.default_rng(0).normal(size=(samples, 8, 8, 1)).astype(np.float32))

    def gradients():
        with tf.GradientTape(persistent=True) as tape:
            output = generator(x)
            logits = 3 * call(discriminator, output) + offset
            adversarial, loss = losses_of(logits, call(discriminator, x), name)
            pairs = [(adversarial + tf.reduce_mean(output**2), generator), (loss, discriminator)]
        order = [1, 0] if reverse else [0, 1]
        found = {i: tape.gradient(pairs[i][0], pairs[i][1].trainable_variables) for i in order}
        return found[0] + found[1]

    return [gradient.numpy() for gradient in (tf.function(gradients) if graph else gradients)()]


NAMES = ["plain", "as printed", "half", "losses", "losses, as printed", "least squares"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "offset", "options"),
    [
        *((name, offset, {"graph": True}) for name in NAMES for offset in (0.0, 15.0, -60.0)),
        ("plain", -200.0, {}),  # the discriminator is beyond doubt
        ("half", 1.0, {"reverse": True}),
        ("plain", 1.0, {"batch_norm": True}),
        ("plain", 1.0, {"samples": 3}),
        ("plain", 1.0, {"samples": 3, "batch_norm": True}),
    ],
)
def test_a_shared_pass_back_gives_the_gradients_of_separate_ones(name, offset, options):
    shared, separate = (duel(name, offset, shared, **options) for shared in (True, False))
    for a, b in zip(shared, separate, strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * np.abs(b).max())


def test_moving_averages_move():
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.BatchNormalization()])
    call_sharing_gradients(network, tf.ones([1, 4, 4, 1]))
    assert float(network.layers[0].moving_mean[0]) > 0

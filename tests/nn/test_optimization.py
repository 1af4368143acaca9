"""Adam is Keras's, minimize takes its gradient, loss scale and replicas cancel out."""

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


def moved(optimizer, steps=20, scale=1.0):
    """Where an optimizer takes the variables, as a list of arrays after every step."""
    weights = variables()
    path = []
    optimizer.build(weights)
    for step in gradients(steps):
        optimizer.apply([tf.constant(g) * scale for g in step], weights)
        path.append([w.numpy() for w in weights])
    return path


def assert_equal_paths(ours, theirs, learning_rate):
    """Check equality to 1e-4 of a step.

    1 - beta_2 ** t alone loses four of seven digits at t = 1.
    """
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(
                a, b, rtol=1e-6, atol=1e-4 * learning_rate, err_msg=f"step {step}"
            )


HYPERPARAMETERS = [
    {"learning_rate": 2e-4, "beta_1": 0.5},
    {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-3},
    {"learning_rate": 0.01, "beta_1": 0.0, "epsilon": 1e-8},
]


@pytest.mark.parametrize("hyperparameters", HYPERPARAMETERS)
def test_adam_equals_the_formula(hyperparameters):
    lr = hyperparameters["learning_rate"]
    beta_1 = hyperparameters["beta_1"]
    beta_2 = hyperparameters.get("beta_2", 0.999)
    epsilon = hyperparameters.get("epsilon", 1e-7)
    w = [v.numpy().astype(np.float64) for v in variables()]
    m = [np.zeros_like(x) for x in w]
    v = [np.zeros_like(x) for x in w]
    path = []
    for t, step in enumerate(gradients(20), 1):
        for i, g in enumerate(step):
            m[i] = beta_1 * m[i] + (1 - beta_1) * g.astype(np.float64)
            v[i] = beta_2 * v[i] + (1 - beta_2) * g.astype(np.float64) ** 2
            w[i] = w[i] - lr * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m[i] / (
                np.sqrt(v[i]) + epsilon
            )
        path.append([x.copy() for x in w])
    for mine, other in zip(moved(Adam(**hyperparameters)), path, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=5e-4 * lr)


def test_adam_equals_keras_adam_in_a_graph():
    def graph(optimizer):
        weights = variables()
        path = []
        optimizer.build(weights)
        step = tf.function(lambda *values: optimizer.apply(list(values), weights))
        for values in gradients(20):
            step(*map(tf.constant, values))
            path.append([w.numpy() for w in weights])
        return path

    assert_equal_paths(graph(Adam(0.01, 0.5)), graph(keras.optimizers.Adam(0.01, 0.5)), 0.01)


def test_adam_equals_keras_adam_under_loss_scaling():
    def scaled(inner):
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)

    ours = moved(scaled(Adam(0.01, 0.5)), scale=1024.0)
    assert_equal_paths(ours, moved(scaled(keras.optimizers.Adam(0.01, 0.5)), scale=1024.0), 0.01)
    assert_equal_paths(ours, moved(Adam(0.01, 0.5)), 0.01)


def test_a_step_with_an_infinite_gradient_is_skipped_and_the_scale_halved():
    weights = variables()
    before = [w.numpy() for w in weights]
    optimizer = keras.optimizers.LossScaleOptimizer(Adam(0.1), initial_scale=1024.0)
    optimizer.build(weights)
    step = next(gradients(1))
    optimizer.apply(
        [tf.constant(step[0]), tf.constant([1, np.inf, 1, 1, 1]), *map(tf.constant, step[2:])],
        weights,
    )
    for weight, old in zip(weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert float(optimizer.dynamic_scale) == 512 and int(optimizer.inner_optimizer.iterations) == 0
    optimizer.apply([tf.constant(g) * 512 for g in step], weights)
    assert (
        int(optimizer.inner_optimizer.iterations) == 1
        and np.abs(weights[0] - before[0]).max() > 1e-3
    )


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


def test_adam_takes_a_learning_rate_schedule():
    def schedule():
        return keras.optimizers.schedules.PiecewiseConstantDecay([5, 12], [0.1, 0.01, 0.001])

    assert_equal_paths(moved(Adam(schedule())), moved(keras.optimizers.Adam(schedule())), 0.1)


def test_adam_survives_serialisation():
    optimizer = Adam(0.003, 0.5, 0.9, 1e-5, name="generator")
    assert optimizer.get_config() == {
        "learning_rate": pytest.approx(0.003),
        "beta_1": 0.5,
        "beta_2": 0.9,
        "epsilon": 1e-5,
        "name": "generator",
    }
    for copy in (
        Adam.from_config(optimizer.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer)),
        keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(keras.optimizers.LossScaleOptimizer(optimizer))
        ).inner_optimizer,
    ):
        assert type(copy) is Adam and copy.get_config() == optimizer.get_config()
    assert_equal_paths(moved(optimizer), moved(copy), 0.003)


@pytest.mark.parametrize(
    ("policy", "scaled"), [("float32", False), ("mixed_bfloat16", False), ("mixed_float16", True)]
)
def test_build_scales_the_loss_under_float16_alone_and_makes_the_slots(policy, scaled):
    keras.config.set_dtype_policy(policy)
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    inner = Adam()
    optimizer = build(inner, network)
    assert (
        (optimizer is not inner)
        == scaled
        == isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    )
    assert optimizer.built and inner.built
    assert (
        [m.shape for m in inner._momentums]
        == [v.shape for v in inner._velocities]
        == [(2, 3), (3,)]
    )


def two_networks(policy="float32"):
    keras.config.set_dtype_policy(policy)
    networks = [
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh", dtype="float32")])
        for _ in range(2)
    ]
    rng = np.random.default_rng(0)
    for network in networks:
        for weight in network.trainable_variables:
            weight.assign(rng.normal(size=weight.shape))
    return networks


X = np.array([[1, -2], [0.5, 3]], np.float32)


def chained_loss(first, second):
    """A loss that depends on both networks."""
    return tf.reduce_mean(first(X) ** 2) + tf.reduce_mean(second(first(X)[:, :2]))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("chosen", [0, 1])
def test_minimize_takes_the_gradient_of_its_network_and_leaves_the_other(chosen, policy):
    networks = two_networks(policy)
    with tf.GradientTape() as tape:
        loss = chained_loss(*networks)
    expected = [
        tf.convert_to_tensor(g) for g in tape.gradient(loss, networks[chosen].trainable_variables)
    ]
    before = [network.get_weights() for network in networks]
    optimizer = build(keras.optimizers.SGD(1.0), networks[chosen])
    with tf.GradientTape() as tape:
        loss = chained_loss(*networks)
    minimize(loss, networks[chosen], optimizer, tape)
    for weight, old, gradient in zip(
        networks[chosen].get_weights(), before[chosen], expected, strict=True
    ):
        np.testing.assert_allclose(old - weight, gradient, rtol=1e-5, atol=1e-6)
        assert np.abs(gradient).max() > 1e-3
    for weight, old in zip(networks[1 - chosen].get_weights(), before[1 - chosen], strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**20])
def test_a_scaled_loss_makes_the_same_step(scale):
    weights = []
    for scaled in (False, True):
        networks = two_networks()
        optimizer = Adam(0.1)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=scale)
        optimizer.build(networks[0].trainable_variables)
        for _ in range(5):
            with tf.GradientTape() as tape:
                loss = chained_loss(*networks)
            minimize(loss, networks[0], optimizer, tape)
        weights.append(networks[0].get_weights())
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

def train(strategy, replicas, share, count=20):
    """Weights after `count` steps on the mean square of a layer's output, its `share` of X on every replica."""
    with strategy.scope():
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        for seed, weight in enumerate(network.trainable_variables):
            weight.assign(np.random.default_rng(seed).normal(size=weight.shape))
        optimizer = build(Adam(0.05, 0.5), network)

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((network(x) - 1.0) ** 2)
        minimize(loss, network, optimizer, tape)

    @tf.function
    def steps():
        for _ in tf.range(count):
            strategy.run(step, args=(values,))

    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(X[share * context.replica_id_in_sync_group:][:share])) if replicas > 1 else tf.constant(X)
    steps()
    iterations = strategy.experimental_local_results(optimizer.iterations.value)[0]
    return [w.numpy().tolist() for w in network.trainable_variables], int(iterations)

def overflow(strategy, chosen, is_late):
    """(finite weights, skipped steps, last update) where a gradient of one replica is beyond float16.

    That of the kernel, which comes first, or of the bias alone: each row's is finite, their sum is not.
    """
    with strategy.scope():
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        optimizer = build(Adam(0.05, 0.5), network)
    before = network.get_weights()

    def step(x):
        with tf.GradientTape() as tape:
            if is_late:
                loss = x[0, 0] * tf.reduce_mean(tf.cast(network(0 * x), tf.float32))
            else:
                loss = tf.reduce_mean(tf.cast(network(x), tf.float32) ** 2)
        minimize(loss, network, optimizer, tape)

    run = tf.function(lambda x: strategy.run(step, args=(x,)))
    for large in (10.0, 20.0, 0.1) if is_late else (1e4, 1e4, 1.0):
        run(strategy.experimental_distribute_values_from_function(
            lambda context: tf.fill([2, 3], large if context.replica_id_in_sync_group == chosen else 0.1)))
    return {
        "finite": all(bool(np.isfinite(w).all()) for w in network.get_weights()),
        "moved": max(float(np.abs(a - b).max()) for a, b in zip(before, network.get_weights())),
        "iterations": [int(v) for v in strategy.experimental_local_results(optimizer.iterations.value)],
        "scale": [float(v) for v in strategy.experimental_local_results(optimizer.dynamic_scale.value)],
    }

def accumulate(strategy, replicas):
    """Weights after 5 steps of two batches; the replicas share the two rows of a batch."""
    with strategy.scope():
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        for seed, weight in enumerate(network.trainable_variables):
            weight.assign(np.random.default_rng(seed).normal(size=weight.shape))
        optimizer = build(Adam(0.05, 0.5), network)
        accumulator = prepare_exchange({"a": network}, {"a": optimizer}, 2, "float32")

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((network(x) - 1.0) ** 2)
        minimize(loss, network, optimizer, tape)

    @tf.function
    def steps(values, is_last):
        accumulator.is_last = is_last
        strategy.run(step, args=(values,))

    rows = 2 // replicas
    halves = [strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(half[rows * context.replica_id_in_sync_group:][:rows])) if replicas > 1 else tf.constant(half)
        for half in (X[:2], X[2:])]
    for _ in range(5):
        for is_last, half in enumerate(halves):
            steps(half, bool(is_last))
    iterations = strategy.experimental_local_results(optimizer.iterations.value)[0]
    return [w.numpy().tolist() for w in network.trainable_variables], int(iterations)

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

    sums = tf.function(lambda: strategy.run(add))()
    return [float(value[0]) for value in strategy.experimental_local_results(sums)]

mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert mirrored.num_replicas_in_sync == 2
results = {"one": train(tf.distribute.get_strategy(), 1, 4), "two": train(mirrored, 2, 2)}
results["accumulated"] = [accumulate(tf.distribute.get_strategy(), 1), accumulate(mirrored, 2)]
results["whole"] = train(tf.distribute.get_strategy(), 1, 4, 5)
results["exchanged"] = {dtype: exchange(mirrored, dtype) for dtype in ("float32", "bfloat16")}
keras.config.set_dtype_policy("mixed_float16")
print(json.dumps({**results, "overflows": [[overflow(mirrored, chosen, is_late) for chosen in (0, 1)] for is_late in (False, True)]}))
'''  # noqa: E501


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory):
    """What TWO_REPLICAS prints."""
    return run_on_two_cpus(TWO_REPLICAS, tmp_path_factory.mktemp("replicas"))


@pytest.mark.slow
def test_adam_and_minimize_agree_on_one_and_on_two_replicas(two_replicas):
    assert two_replicas["two"][1] == two_replicas["one"][1] == 20
    for a, b in zip(two_replicas["two"][0], two_replicas["one"][0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_batches_of_a_step_update_like_one(two_replicas, replicas):
    weights, iterations = two_replicas["accumulated"][replicas - 1]
    whole, steps = two_replicas["whole"]
    assert iterations == steps == 5
    for a, b in zip(weights, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_gradients_are_exchanged_in_the_chosen_numbers(two_replicas):
    assert two_replicas["exchanged"]["float32"] == pytest.approx([3.003] * 2, abs=1e-6)
    # 1.001 and 2.002 are 1 and 2 with eight bits
    assert two_replicas["exchanged"]["bfloat16"] == [3.0, 3.0]


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


def duel(
    name,
    offset,
    shared,
    graph=False,
    samples=1,
    batch_norm=False,
    order=("generator", "discriminator"),
):
    """Compute the gradients of a small generator and a small discriminator of two samples."""
    keras.utils.set_random_seed(0)
    generator = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same", activation="tanh")]
    )
    hidden = [keras.layers.BatchNormalization()] * batch_norm + [keras.layers.LeakyReLU()]
    discriminator = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), *hidden, keras.layers.Conv2D(1, 3)]
    )
    call = call_sharing_gradients if shared else lambda network, x: network(x, training=True)
    x = tf.constant(np.random.default_rng(0).normal(size=(samples, 8, 8, 1)).astype(np.float32))
    networks = {"generator": generator, "discriminator": discriminator}

    def gradients():
        with tf.GradientTape(persistent=True) as tape:
            output = generator(x)
            logits = 3 * call(discriminator, output) + offset
            real = call(discriminator, x)
            adversarial, loss = losses_of(logits, real, name)
            losses = {"generator": adversarial + tf.reduce_mean(output**2), "discriminator": loss}
        return {
            which: tape.gradient(losses[which], networks[which].trainable_variables)
            for which in order
        }

    found = (tf.function(gradients) if graph else gradients)()
    return [
        gradient.numpy() for which in ("generator", "discriminator") for gradient in found[which]
    ]


def assert_equal_gradients(shared, separate):
    for a, b in zip(shared, separate, strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 15.0, -60.0])
@pytest.mark.parametrize(
    "name", ["plain", "as printed", "half", "losses", "losses, as printed", "least squares"]
)
def test_a_shared_pass_back_gives_the_gradients_of_separate_ones_whatever_the_losses(name, offset):
    assert_equal_gradients(
        duel(name, offset, True, graph=True), duel(name, offset, False, graph=True)
    )


def test_a_discriminator_beyond_doubt_leaves_the_gradients_of_separate_passes():
    assert_equal_gradients(duel("plain", -200.0, True), duel("plain", -200.0, False))


def test_the_order_of_the_losses_does_not_matter():
    assert_equal_gradients(
        duel("half", 1.0, True, order=("discriminator", "generator")), duel("half", 1.0, False)
    )


@pytest.mark.parametrize(("samples", "batch_norm"), [(1, True), (3, False), (3, True)])
def test_samples_that_share_statistics_have_the_gradients_of_separate_passes(samples, batch_norm):
    shared, separate = (
        duel("plain", 1.0, shared, samples=samples, batch_norm=batch_norm)
        for shared in (True, False)
    )
    assert_equal_gradients(shared, separate)


def test_moving_averages_move():
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.BatchNormalization()])
    call_sharing_gradients(network, tf.ones([1, 4, 4, 1]))
    assert float(network.layers[0].moving_mean[0]) > 0


def test_a_multiple_of_the_first_gradient_costs_no_second_pass():
    met = []

    def pass_back(gradient):
        met.append(gradient)
        return [3 * gradient, tf.reduce_sum(gradient)[tf.newaxis]]

    answer = optimization._remember(pass_back)
    first = tf.constant([[1.0, -2.0, 3e-3]])
    for factor in (1.0, -0.25, 1e12, 1e-12):
        whole, total = answer(factor * first)
        np.testing.assert_allclose(whole, 3 * factor * first, rtol=1e-6)
        np.testing.assert_allclose(total, [factor * tf.reduce_sum(first)], rtol=1e-6)
    assert len(met) == 1
    for other in ([[1.0, -2.0, 3.1e-3]], [[0.0, 1.0, 0.0]], [[np.nan, 1.0, 0.0]]):
        np.testing.assert_array_equal(answer(tf.constant(other))[0], 3 * tf.constant(other))
    assert len(met) == 4


@pytest.mark.parametrize("first", [0.0, 1e-30])
def test_a_first_gradient_too_small_to_be_scaled_is_not_used(first):
    answer = optimization._remember(lambda gradient: [gradient + tf.reduce_max(gradient)])
    answer(tf.constant([first, 2 * first]))
    np.testing.assert_array_equal(answer(tf.constant([1.0, 2.0]))[0], [3.0, 4.0])


def test_nothing_is_shared_under_float16():
    keras.config.set_dtype_policy("mixed_float16")
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(1, 3)])
    x = tf.ones([1, 4, 4, 1])
    with tf.GradientTape() as tape:
        y = call_sharing_gradients(network, x)
    assert y.dtype == tf.float16 and tape.gradient(y, network.trainable_variables)[0] is not None

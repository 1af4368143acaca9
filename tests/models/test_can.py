"""CAN's Algorithm 1: values, gradients, order of updates, replicas, exports, golden numbers."""

import json
import runpy

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.full_size import build_without_memory, count_each, shape_answer
from tests.two_cpus import run_on_two_cpus
from tests.updates import assert_descends, deceive, read_weights, respond, tell_apart
from tfmammo.errors import ConfigError
from tfmammo.models.can import CAN, CANConfig
from tfmammo.nn import optimization
from tfmammo.nn.networks import PatchDiscriminator

SIZE = 16
NETWORKS = ("generator", "inverter", "discriminator")


def small(seed=0, kind=None, **config):
    """Build a CAN of a few hundred weights, drawn by NumPy, by default without dropout.

    Args:
        kind: Class of the model.
    """
    can = (kind or CAN)(
        CANConfig(**{"filters": (4, 8), "discriminator_filters": 4, "dropout": 0.0, **config}), SIZE
    )
    rng = np.random.default_rng(seed)
    for network in can.networks.values():
        for weight in network.trainable_variables:
            weight.assign(rng.normal(0, 0.1, weight.shape) + (weight.name == "gamma"))
    return can


def batch(count=2, seed=1):
    """Discs and images that show them, in noise."""
    rng = np.random.default_rng(seed)
    distance = np.hypot(*(np.indices((SIZE, SIZE)) - SIZE / 2))[np.newaxis] / rng.uniform(
        3, 7, (count, 1, 1)
    )
    masks = (distance < 1).astype(np.float32)[..., np.newaxis]
    images = np.clip(0.3 + 0.4 * masks + 0.1 * rng.normal(size=masks.shape), 0, 1).astype(
        np.float32
    )
    return {"mask": tf.constant(masks), "image": tf.constant(images)}


def forward(can, data):
    """Compute Algorithm 1, lines 3 to 5, in float64.

    Returns masks and images in [-1, 1], and D's logits for the three pairs.
    """
    real_mask = data["mask"] * 2 - 1
    real_image = data["image"] * 2 - 1
    fake_image = can.generator(real_mask)
    fake_mask = can.inverter(real_image)
    pairs = ((real_mask, real_image), (real_mask, fake_image), (fake_mask, real_image))
    logits = [can.discriminator(tf.concat(pair, -1)) for pair in pairs]
    return [
        np.asarray(x, np.float64) for x in (real_mask, real_image, fake_image, fake_mask, *logits)
    ]


def test_the_papers_values_are_the_defaults():
    config = CANConfig()
    assert (config.lambda_1, config.lambda_2, config.learning_rate, config.beta_1) == (
        10,
        100,
        2e-4,
        0.5,
    )
    assert (config.adversarial, config.average, config.l2) == (
        "non_saturating",
        "responses",
        "mean_square",
    )
    assert (
        config.filters == (64, 128, 256, 512, 512, 512, 512, 512)
        and config.discriminator_strided == 1
    )


def test_d_alone_takes_a_rate_of_its_own():
    rates = {name: float(each.learning_rate) for name, each in small().optimizers.items()}
    assert rates == pytest.approx(dict.fromkeys(("generator", "inverter", "discriminator"), 2e-4))
    slow = small(discriminator_rate=5e-5).optimizers
    assert float(slow["discriminator"].learning_rate) == pytest.approx(5e-5)
    assert float(slow["generator"].learning_rate) == pytest.approx(2e-4)


def test_discriminators_of_several_scales_judge_alike():
    can = small(discriminator_strided=(1, 2))
    mask, image = (value * 2 - 1 for value in batch().values())
    logits = can.discriminate(mask, image)
    pair = tf.concat([mask, image], axis=-1)
    alone = [scale(pair).numpy().reshape(2, -1) for scale in can.discriminator.scales]
    assert [each.shape[1] for each in alone] == [6 * 6, 2 * 2]
    np.testing.assert_array_equal(logits.numpy().reshape(2, -1), np.concatenate(alone, axis=1))
    assert can.discriminator.receptive_field == 34
    before = read_weights(can)
    can.train_step(batch())
    after = read_weights(can)
    for scale in can.discriminator.scales:
        assert scale.trainable_variables
    assert all(
        np.any(old != new)
        for old, new in zip(before["discriminator"], after["discriminator"], strict=True)
    )


def test_dropout_at_inference_draws_by_the_mask_alone():
    masks = batch()["mask"]
    usual = small(dropout=0.5).synthesize(masks).numpy()
    noisy = small(dropout=0.5, dropout_at_inference=True)
    images = noisy.synthesize(masks).numpy()
    assert np.abs(images - usual).max() > 0.01
    np.testing.assert_allclose(noisy.synthesize(masks[1:]), images[1:], atol=1e-6)
    image = batch()["image"]
    np.testing.assert_array_equal(noisy.segment(image), small(dropout=0.5).segment(image))


def test_noise_is_drawn_by_the_mask_alone_and_anew_in_training():
    masks = batch()["mask"]
    can = small(noise=True, upsampling="resize")
    images = can.synthesize(masks).numpy()
    np.testing.assert_array_equal(can.synthesize(masks), images)
    np.testing.assert_allclose(can.synthesize(masks[1:]), images[1:], atol=1e-6)
    other = tf.tensor_scatter_nd_update(masks[:1], [[0, 0, 0, 0]], [1 - masks[0, 0, 0, 0]])
    far = np.abs(can.synthesize(other)[0, 8:, 8:] - images[0, 8:, 8:])
    assert far.min() < far.max() and np.median(far) > 1e-3, "another mask draws other noise"
    drawn = [can.generator(masks * 2 - 1, training=True).numpy() for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


@pytest.mark.parametrize("period", [2, 4, 8])
def test_lattices_of_the_maps_do_not_reach_a_textured_image(period):
    can = small(noise=True, upsampling="resize")
    network = can.generator
    mask = batch(1)["mask"] * 2 - 1
    image = network(mask).numpy()
    unet = network.unet
    cell = np.random.default_rng(0).normal(size=(period, period)).astype(np.float32)
    lattice = np.tile(cell - cell.mean(), (SIZE // period, SIZE // period))
    network.unet = lambda *args, **kwargs: unet(*args, **kwargs) + lattice[..., np.newaxis]
    whole = np.s_[:, 6 : SIZE - 7, 6 : SIZE - 7]  # means at the border are of fewer pixels
    np.testing.assert_allclose(network(mask).numpy()[whole], image[whole], atol=1e-5)


def test_the_noise_of_each_window_has_a_deviation_of_one():
    can = CAN(CANConfig(filters=(4, 8), discriminator_filters=4, noise=True), 128)
    for window in (1, 2, 4, 8):
        noise = can.generator._draw(1, window, tf.zeros((1, 2), tf.int64)).numpy()
        assert noise.shape == (1, 128, 128, 2)
        assert np.std(noise) == pytest.approx(1, abs=0.1)
        # neighbours share a part of the values that they sum over
        alike = np.mean(noise[:, 1:] * noise[:, :-1])
        assert alike == pytest.approx(1 - 1 / window, abs=0.1)


def test_the_l1_term_of_means_by_hand():
    with pytest.raises(ConfigError, match="model.l1_window: 64 px are more than a patch has, 32"):
        CAN(CANConfig(l1_window=64), 32)
    can = small(l1_window=2)
    real = np.zeros((1, SIZE, SIZE, 1), np.float32)
    fake = real.copy()
    fake[0, 0, 0, 0] = 1  # in one square of 15 x 15
    fake[0, 8, 8, 0] = 1  # in four, and so is its neighbour; two hold both, whose mean is 0
    fake[0, 8, 9, 0] = -1
    squares = 1 / 4 + 4 * 1 / 4
    assert float(can.compare(real, fake)) == pytest.approx(squares / 15**2)
    assert float(small().compare(real, fake)) == pytest.approx(3 / SIZE**2)


def test_the_papers_networks(monkeypatch):
    can = build_without_memory(CAN, monkeypatch)
    counts = {"generator": 54_407_809, "inverter": 54_407_809, "discriminator": 135_489}
    assert count_each(can) == counts
    assert can.discriminator.receptive_field == 16
    assert shape_answer(can.discriminator, 256, 256, 2) == (1, 126, 126, 1)


@pytest.mark.parametrize("adversarial", ["non_saturating", "as_printed"])
@pytest.mark.parametrize("average", ["responses", "losses"])
@pytest.mark.parametrize("l2", ["mean_square", "norm"])
def test_every_returned_number_by_hand(adversarial, average, l2):
    can = small(adversarial=adversarial, average=average, l2=l2, lambda_1=3, lambda_2=7)
    data = batch()
    for network in can.networks.values():  # larger weights: logits that differ from patch to patch
        network.set_weights([3 * w for w in network.get_weights()])
    real_mask, real_image, fake_image, fake_mask, *logits = forward(can, data)
    p_real, p_fake_1, p_fake_2 = (1 / (1 + np.exp(-x)) for x in logits)
    if average == "responses":
        p_real, p_fake_1, p_fake_2 = (p.mean(axis=(1, 2, 3)) for p in (p_real, p_fake_1, p_fake_2))

    def adversary(p):
        return np.log(1 - p).mean() if adversarial == "as_printed" else -np.log(p).mean()

    difference = real_mask - fake_mask
    distance = (
        (difference**2).mean()
        if l2 == "mean_square"
        else np.sqrt((difference**2).sum(axis=(1, 2, 3))).mean()
    )
    image_l1 = np.abs(real_image - fake_image).mean()
    expected = {
        "generator_loss": adversary(p_fake_1) + 3 * image_l1,
        "inverter_loss": adversary(p_fake_2) + 7 * distance,
        "discriminator_loss": -(
            np.log(p_real).mean() + np.log(1 - p_fake_1).mean() + np.log(1 - p_fake_2).mean()
        ),
        "image_l1": image_l1,
        "mask_l2": distance,
        "p_real": p_real.mean(),
        "p_fake_image": p_fake_1.mean(),
        "p_fake_mask": p_fake_2.mean(),
    }
    losses = can.train_step(data)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=2e-5, err_msg=name)
    assert abs(expected["p_real"] - expected["p_fake_image"]) > 1e-3 and logits[0].std() > 0.1, (
        "the case tells the pairs apart"
    )


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("adversarial", "average", "l2"),
    [
        ("non_saturating", "responses", "mean_square"),
        ("non_saturating", "losses", "norm"),
        ("as_printed", "responses", "norm"),
        ("as_printed", "losses", "mean_square"),
    ],
)
def test_every_network_descends_its_own_loss_from_the_weights_before_the_round(
    adversarial, average, l2, count
):
    config = {"adversarial": adversarial, "average": average, "l2": l2}
    can, reference = (small(lambda_1=0.5, lambda_2=0.25, **config) for _ in range(2))
    data = batch(count)
    real_mask = data["mask"] * 2 - 1
    real_image = data["image"] * 2 - 1

    def probability(mask, image):
        return respond(reference.discriminator(tf.concat([mask, image], -1)), average)

    def generator_loss():
        image = reference.generator(real_mask)
        distance = tf.reduce_mean(tf.abs(real_image - image))
        return deceive(probability(real_mask, image), adversarial) + 0.5 * distance

    def inverter_loss():
        mask = reference.inverter(real_image)
        squares = (real_mask - mask) ** 2
        norm = tf.reduce_mean(tf.sqrt(tf.reduce_sum(squares, axis=[1, 2, 3])))
        distance = norm if l2 == "norm" else tf.reduce_mean(squares)
        return deceive(probability(mask, real_image), adversarial) + 0.25 * distance

    def discriminator_loss():
        return tell_apart(
            probability(real_mask, real_image),
            probability(real_mask, reference.generator(real_mask)),
            probability(reference.inverter(real_image), real_image),
        )

    assert_descends(
        can,
        reference,
        data,
        generator=generator_loss,
        inverter=inverter_loss,
        discriminator=discriminator_loss,
    )


class Halved(CAN):
    """Half of the adversarial term."""

    def adversarial(self, fake):
        return super().adversarial(fake) / 2


class LeastSquares(CAN):
    """The adversarial term of LSGAN, whose gradient is no multiple of that of D's loss."""

    def adversarial(self, fake):
        return tf.reduce_mean((fake - 1) ** 2)


class Coupled(CAN):
    """D's batch normalisation, in which samples share their statistics."""

    def __init__(self, config, size):
        super().__init__(config, size)
        self.discriminator = PatchDiscriminator(
            2, 1, 4, size, "discriminator", norm=keras.layers.BatchNormalization
        )
        self.networks["discriminator"] = self.discriminator


def updates(kind, count, shares, **config):
    """Compute by how much one round of plain gradient descent moves every weight.

    A round that shares a pass back runs in a graph, as in training.
    """
    can = small(kind=kind, adversarial="non_saturating", **config)
    can.shares_gradients = shares
    can.optimizers = {name: keras.optimizers.SGD(1.0) for name in NETWORKS}
    before = read_weights(can)
    step = tf.function(can.train_step) if shares and count == 1 else can.train_step
    step(batch(count))
    return {
        name: [new - old for old, new in zip(before[name], now, strict=True)]
        for name, now in read_weights(can).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "average"),
    [
        *((kind, 1, "responses") for kind in (CAN, Halved, LeastSquares, Coupled)),
        *((kind, 3, "responses") for kind in (CAN, Halved, Coupled)),
        (CAN, 1, "losses"),
    ],
)
def test_sharing_a_pass_back_changes_no_update_whatever_is_overridden(kind, count, average):
    shared, plain = (updates(kind, count, shares, average=average) for shares in (True, False))
    for name in NETWORKS:
        largest = max(np.abs(update).max() for update in plain[name])
        for a, b in zip(shared[name], plain[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("average", "passes"), [("responses", 3), ("losses", 0)])
def test_three_passes_back_through_the_discriminator_serve_five_losses(
    monkeypatch, average, passes, policy
):
    keras.config.set_dtype_policy(policy)
    can = small(average=average)
    met = []
    remember = optimization._remember
    monkeypatch.setattr(
        optimization,
        "_remember",
        lambda pass_back: remember(lambda y: met.append(y) or pass_back(y)),
    )
    can.train_step(batch(1))
    assert len(met) == passes, "one for each pair; none where no two losses can share one"


@pytest.mark.slow
def test_half_the_adversarial_term_moves_its_networks_half_as_far():
    whole, half = (updates(kind, 1, True, lambda_1=0.0, lambda_2=0.0) for kind in (CAN, Halved))
    for name in NETWORKS:
        for a, b in zip(whole[name], half[name], strict=True):
            np.testing.assert_allclose(
                b, a if name == "discriminator" else a / 2, rtol=1e-3, atol=1e-6
            )


def test_the_discriminator_learns_to_tell_pairs_apart():
    can = small()
    data = batch()
    for name, optimizer in can.optimizers.items():
        optimizer.learning_rate = 1e-2 if name == "discriminator" else 0.0
    history = [
        {name: float(value) for name, value in can.train_step(data).items()} for _ in range(10)
    ]
    first = history[0]
    last = history[-1]
    assert last["discriminator_loss"] < first["discriminator_loss"] - 0.3
    assert last["p_real"] > max(last["p_fake_image"], last["p_fake_mask"]) + 0.1
    assert last["image_l1"] == pytest.approx(first["image_l1"]) and last[
        "mask_l2"
    ] == pytest.approx(first["mask_l2"])


@pytest.mark.slow
def test_generator_and_inverter_learn():
    can = small(learning_rate=1e-2)
    data = batch()
    history = [
        {name: float(value) for name, value in can.train_step(data).items()} for _ in range(20)
    ]
    first = history[0]
    last = history[-1]
    assert (
        last["generator_loss"] < 0.8 * first["generator_loss"]
        and last["inverter_loss"] < 0.5 * first["inverter_loss"]
    )
    assert last["image_l1"] < 0.8 * first["image_l1"] and last["mask_l2"] < 0.5 * first["mask_l2"]


def test_adversarial_pressure_alone_makes_pairs_look_real():
    can = small(lambda_1=0, lambda_2=0)
    data = batch()
    can.optimizers["discriminator"].learning_rate = 0.0
    for name in ("generator", "inverter"):
        can.optimizers[name].learning_rate = 1e-2
    history = [
        {name: float(value) for name, value in can.train_step(data).items()} for _ in range(10)
    ]
    for name in ("p_fake_image", "p_fake_mask"):
        assert history[-1][name] > history[0][name] + 1e-3


def test_a_sample_is_trained_on_as_if_alone():
    data = batch(3)
    losses = small().train_step(data)
    singles = [
        small().train_step({name: value[i : i + 1] for name, value in data.items()})
        for i in range(3)
    ]
    for name, value in losses.items():
        np.testing.assert_allclose(
            value, np.mean([single[name] for single in singles]), rtol=1e-4, err_msg=name
        )


@pytest.mark.slow
def test_training_in_a_graph_equals_training_eagerly():
    eager = small()
    graph = small()
    data = batch()
    step = tf.function(graph.train_step)
    for _ in range(3):
        now = step(data)
        expected = eager.train_step(data)
        for name, value in expected.items():
            np.testing.assert_allclose(now[name], value, rtol=1e-4, err_msg=name)
    for name, values in read_weights(eager).items():
        for a, b in zip(values, read_weights(graph)[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def test_dropout_is_on_in_training_and_off_at_inference():
    can = small(dropout=0.5)
    data = batch()
    for optimizer in can.optimizers.values():
        optimizer.learning_rate = 0.0
    first = can.train_step(data)
    second = can.train_step(data)
    assert (
        abs(float(first["image_l1"] - second["image_l1"])) > 1e-6
        and abs(float(first["mask_l2"] - second["mask_l2"])) > 1e-6
    )
    np.testing.assert_array_equal(can.synthesize(data["mask"]), can.synthesize(data["mask"]))
    np.testing.assert_array_equal(can.segment(data["image"]), can.segment(data["image"]))


def test_panels_of_the_image_grid():
    can = small()
    data = batch(3)
    panels = can.sample(data)
    assert list(panels) == ["mask", "synthetic", "real", "segmented"]
    for panel in panels.values():
        assert panel.shape == (3, SIZE, SIZE, 1) and panel.dtype == tf.float32
        assert np.min(panel) >= 0 and np.max(panel) <= 1
    real_mask, real_image, fake_image, fake_mask, *_ = forward(can, data)
    np.testing.assert_array_equal(panels["mask"], data["mask"])
    np.testing.assert_array_equal(panels["real"], data["image"])
    np.testing.assert_allclose(panels["synthetic"], (fake_image + 1) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(panels["segmented"], (fake_mask + 1) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_exported_functions(count):
    can = small()
    data = batch(count)
    functions = can.functions()
    assert list(functions) == list(NETWORKS)
    takes = {"generator": ["mask"], "inverter": ["image"], "discriminator": ["mask", "image"]}
    gives = {"generator": "image", "inverter": "mask", "discriminator": "logits"}
    real_mask, real_image, fake_image, fake_mask, logits, *_ = forward(can, data)
    expected = {
        "generator": (fake_image + 1) / 2,
        "inverter": (fake_mask + 1) / 2,
        "discriminator": logits,
    }
    for name, function in functions.items():
        specs = [tf.TensorSpec([None, SIZE, SIZE, 1], tf.float32, spec) for spec in takes[name]]
        assert list(function.input_signature) == specs
        answer = function(**{spec.name: data[spec.name] for spec in specs})
        assert list(answer) == [gives[name]] and answer[gives[name]].dtype == tf.float32
        np.testing.assert_allclose(answer[gives[name]], expected[name], rtol=1e-4, atol=1e-5)
    side = SIZE // 2 - 2
    assert functions["discriminator"](**data)["logits"].shape == (count, side, side, 1)
    for name in ("generator", "inverter"):
        answer = functions[name](data[takes[name][0]])[gives[name]]
        assert np.min(answer) >= 0 and np.max(answer) <= 1 and np.std(answer) > 1e-4


def test_a_wider_patch_of_the_discriminator():
    can = small(discriminator_strided=2)
    assert can.discriminator.receptive_field == 34
    assert all(np.isfinite(value) for value in can.train_step(batch()).values())


def test_patches_that_can_not_be_halved_are_refused():
    with pytest.raises(ValueError, match="patches of 20 px can't be halved 3 times"):
        CAN(CANConfig(filters=(4, 8, 8)), size=20)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lambda_1": -1},
        {"learning_rate": 0},
        {"beta_1": 1},
        {"dropout": 1},
        {"l2": "l1"},
        {"filters": [0]},
        {"filters": []},
        {"x": 1},
    ],
)
def test_configs_that_make_no_sense(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CANConfig(**wrong)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_and_answers_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    can = small()
    data = batch(1)
    assert all(
        isinstance(o, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
        for o in can.optimizers.values()
    )
    assert all(optimizer.built for optimizer in can.optimizers.values())
    for _ in range(3):
        losses = can.train_step(data)
        assert all(value.dtype == tf.float32 and np.isfinite(value) for value in losses.values())
    assert all(panel.dtype == tf.float32 for panel in can.sample(data).values())
    assert all(
        w.dtype == np.float32 and np.isfinite(w).all()
        for network in read_weights(can).values()
        for w in network
    )


TWO_REPLICAS = """
from tfmammo.models.can import CAN, CANConfig

rng = np.random.default_rng(1)
MASK = rng.integers(0, 2, (2, 8, 8, 1)).astype(np.float32)
IMAGE = rng.random((2, 8, 8, 1)).astype(np.float32)

def train(strategy, steps=6):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        can = CAN(CANConfig(filters=(4, 8), discriminator_filters=4, dropout=0), 8)
        rng = np.random.default_rng(0)
        for network in can.networks.values():
            for weight in network.trainable_variables:
                weight.assign((rng.normal(0, 0.1, weight.shape) + (weight.name == "gamma")).astype(np.float32))
    data = tf.data.Dataset.from_tensors({"mask": MASK, "image": IMAGE}).repeat()
    if strategy.num_replicas_in_sync > 1:
        data = strategy.experimental_distribute_dataset(data)

    @tf.function
    def step(batch):
        losses = strategy.run(can.train_step, args=(batch,))
        return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None) for name, loss in losses.items()}

    batches = iter(data)
    history = [{name: float(loss) for name, loss in step(next(batches)).items()} for _ in range(steps)]
    return {
        "history": history,
        "weights": {name: [w.numpy().ravel().tolist() for w in network.trainable_variables] for name, network in can.networks.items()},
        "scaled": [isinstance(o, keras.optimizers.LossScaleOptimizer) and o.inner_optimizer.built for o in can.optimizers.values()],
    }

mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert mirrored.num_replicas_in_sync == 2
results = {"one": train(tf.distribute.get_strategy()), "two": train(mirrored)}
keras.config.set_dtype_policy("mixed_float16")
print(json.dumps({**results, "half": train(mirrored, 30)}))
"""  # noqa: E501


@pytest.mark.long
def test_two_replicas_train_as_one_does_and_under_float16_too(tmp_path):
    results = run_on_two_cpus(TWO_REPLICAS, tmp_path)
    one = results["one"]
    two = results["two"]
    half = results["half"]
    for a, b in zip(one["history"], two["history"], strict=True):
        for name, loss in a.items():
            np.testing.assert_allclose(b[name], loss, rtol=1e-6, atol=1e-6, err_msg=name)
    for name in NETWORKS:
        for a, b in zip(one["weights"][name], two["weights"][name], strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-6, err_msg=name)
    assert half["scaled"] == [True] * 3 and one["scaled"] == [False] * 3
    for name, loss in one["history"][0].items():
        np.testing.assert_allclose(
            half["history"][0][name], loss, rtol=2e-2, atol=1e-2, err_msg=name
        )
    assert all(np.isfinite(list(losses.values())).all() for losses in half["history"])
    assert all(np.isfinite(values).all() for name in NETWORKS for values in half["weights"][name])
    for name in ("inverter_loss", "generator_loss"):
        assert half["history"][-1][name] < half["history"][0][name], (
            "some steps are skipped until the loss scale fits, not all"
        )


@pytest.mark.parametrize("case", ["default", "as_printed"])
def test_golden_numbers(repository, case):
    recipe = runpy.run_path(str(repository / "tests" / "golden" / "make_can_golden.py"))
    golden = json.loads(recipe["GOLDEN"].read_text(encoding="utf-8"))
    assert set(golden) == set(recipe["CASES"])
    found = recipe["losses"](case)
    assert len(found) == len(golden[case]) == 3
    for step, (now, before) in enumerate(zip(found, golden[case], strict=True)):
        assert set(now) == set(before)
        for name, value in before.items():
            np.testing.assert_allclose(
                now[name], value, rtol=1e-4, err_msg=f"{name} at step {step}"
            )

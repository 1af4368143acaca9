"""Rectified flow: Eq. (1), samplers against flows in closed form, noise as the seed, exports."""

import numpy as np
import pytest
import tensorflow as tf

from tests.known_networks import KnownCAN
from tests.models.every import make_batch, make_model, make_random
from tests.updates import assert_follows
from tfmammo.config import DataConfig
from tfmammo.errors import ConfigError, ExportError
from tfmammo.models.flow import embed_time, export_again, flow_matching, integrate
from tfmammo.nn.layers import patch_seeds, tri_label, uniform_noise
from tfmammo.synthesis import generators
from tfmammo.tracking import export

SIZE = 16


def small(size=SIZE, **config):
    return make_random("flow", size, 0.2, **config)


def batch(count=2):
    return make_batch("flow", count, 1, SIZE)


def label_of(data, seed):
    noise = np.random.default_rng(seed).random(data["image"].shape, np.float32)
    return tri_label(data["image"], data["mask"], tf.constant(noise))


def test_the_loss_is_each_holes_mean_by_hand():
    mask = np.zeros((3, 2, 2, 1), np.float32)
    mask[0, 0, 0] = 1
    mask[1, 0] = 1
    displacement = np.arange(12, dtype=np.float32).reshape(mask.shape)
    velocity = np.ones_like(mask)
    # (0 - 1)^2; ((4 - 1)^2 + (5 - 1)^2) / 2; no hole
    expected = (1 + 12.5 + 0) / 3
    assert float(flow_matching(displacement, velocity, mask)) == pytest.approx(expected)


def test_an_untrained_network_is_still():
    label = label_of(batch(), 0)
    found = make_model("flow", SIZE).infill(label)
    np.testing.assert_allclose(found, label[..., :1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("ema", "drop", "margin"), [(0.999, 0.0, 296), (0.05, 0.5, None)])
def test_the_network_descends_eq_1_and_the_average_follows(ema, drop, margin):
    model, reference = (small(ema=ema, drop_condition=drop, margin=margin) for _ in range(2))
    data = batch(4)
    seeds = patch_seeds(data["image"], 0)
    noise = uniform_noise(seeds, SIZE)
    time = uniform_noise(seeds + 1, 1)
    keeps = np.asarray(uniform_noise(seeds + 2, 1)) >= drop
    assert drop == 0 or 0 < keeps.sum() < 4

    def loss():
        start = tf.where(data["mask"] > 0, noise, data["image"]) * 2 - 1
        end = data["image"] * 2 - 1
        condition = tri_label(data["image"], data["mask"], noise, margin)[..., 1:] * 2 - 1
        state = tf.concat([time * end + (1 - time) * start, keeps * condition], -1)
        velocity = reference.velocity(state, time[:, 0, 0, 0])
        errors = [
            tf.reduce_mean(tf.boolean_mask((one - zero - v) ** 2, mask > 0))
            for one, zero, v, mask in zip(end, start, velocity, data["mask"], strict=True)
        ]
        return tf.add_n(errors) / 4

    def algorithm(descend):
        descend(velocity=loss)
        weight = min(ema, 1 / 10)
        pairs = zip(
            reference.average.trainable_variables,
            reference.velocity.trainable_variables,
            strict=True,
        )
        for mean, value in pairs:
            mean.assign(weight * mean + (1 - weight) * value)

    assert_follows(model, reference, data, algorithm)


# X_0 ~ N(0, A^2) and X_1 ~ N(M, B^2) are independent, so X_t ~ N(t M, s^2(t)) with
# s^2 = t^2 B^2 + (1 - t)^2 A^2, and E[X_1 - X_0 | X_t = x] = M + s' / s (x - t M). The flow keeps
# (Z_t - t M) / s, so that Z_1 = M + B / A Z_0.
A, B, M = 1.0, 0.3, 2.0


def gaussian_velocity(state, time):
    variance = time**2 * B**2 + (1 - time) ** 2 * A**2
    return M + (time * B**2 - (1 - time) * A**2) / variance * (state - time * M)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_the_flow_between_gaussians_and_each_methods_order(sampler, order):
    start = tf.constant([-2.0, -0.5, 1.0, 3.0])
    exact = M + B / A * start.numpy()
    errors = [
        np.abs(integrate(gaussian_velocity, start, steps, sampler) - exact).max()
        for steps in (20, 40, 80)
    ]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert np.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert errors[-1] < (0.05 if sampler == "euler" else 0.002)
    # one step is exact on straight lines
    end = integrate(lambda state, time: tf.fill([4], 3.0), start, 1, sampler)
    np.testing.assert_array_equal(end, start + 3)


def test_sinusoids_by_hand():
    embedded = embed_time(tf.constant([0.0, 0.5]), 4)
    # frequencies 1000 and 1000 / 100
    expected = [[1, 1, 0, 0], [np.cos(500), np.cos(5), np.sin(500), np.sin(5)]]
    np.testing.assert_allclose(embedded, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_noise_decides_the_lesion_and_nothing_else_does(sampler):
    model = small(sampler=sampler)
    data = batch(3)
    first, second = (label_of(data, seed) for seed in (1, 2))
    lesions = model.infill(first).numpy()
    others = model.infill(second).numpy()
    hole = data["mask"].numpy() > 0
    assert np.abs(lesions - others)[hole].mean() > 0.05
    np.testing.assert_array_equal(model.infill(first), lesions)
    np.testing.assert_allclose(model.infill(first[1:2]), lesions[1:2], atol=1e-5)
    for image in (lesions, others):
        np.testing.assert_array_equal(image[~hole], data["image"].numpy()[~hole])
        assert image.min() >= 0 and image.max() <= 1


@pytest.mark.slow
def test_the_network_sees_the_tissue_as_it_is_at_every_step(monkeypatch):
    model = small()
    data = batch()
    states = []

    def record(state, time, condition):
        states.append(state.numpy())
        return tf.ones_like(state)

    monkeypatch.setattr(model, "guided_velocity", record)
    model.infill(label_of(data, 1))
    outside = data["mask"].numpy() == 0
    assert len(states) == 2
    for state in states:
        np.testing.assert_array_equal(state[outside], (data["image"].numpy() * 2 - 1)[outside])
    np.testing.assert_allclose((states[1] - states[0])[~outside], 1 / 2, atol=1e-6)


@pytest.mark.slow
def test_guidance_leads_away_from_the_flow_without_mask_and_margin():
    plain = small(drop_condition=0.1)
    guided = small(drop_condition=0.1, guidance=2.5)
    rng = np.random.default_rng(0)
    state, condition = (
        tf.constant(rng.uniform(-1, 1, (2, SIZE, SIZE, n)).astype(np.float32)) for n in (1, 2)
    )
    time = tf.constant(0.3)
    with_condition, without = (
        plain.average(tf.concat([state, c], -1), tf.fill([2], time)).numpy()
        for c in (condition, 0 * condition)
    )
    np.testing.assert_array_equal(plain.guided_velocity(state, time, condition), with_condition)
    np.testing.assert_allclose(
        guided.guided_velocity(state, time, condition),
        without + 2.5 * (with_condition - without),
        atol=1e-5,
    )
    assert np.abs(with_condition - without).max() > 1e-2


def write(model, folder):
    data = DataConfig(size=model.size, frame="padded", padding=20, window=(0, 1))
    config = {"data": data.model_dump(mode="json"), "model": model.config.model_dump(mode="json")}
    return export.export(model, folder, {"config": config, "train_patients": ["p"]})


@pytest.mark.slow
def test_the_same_weights_are_exported_with_another_sampler(tmp_path):
    model = small()
    folder = write(model, tmp_path / "export")
    assert export.find_function(folder, {"tri_label"}, {"image"}) == "average"
    assert export.read_card(folder)["serves"] == "average"
    changes = {"sampling_steps": 1, "sampler": "heun"}
    again = export_again(folder, tmp_path / "one", **changes)
    label = label_of(batch(), 3).numpy()
    first, second = (generators.load_generator(each) for each in (folder, again))
    # A recipe names its network by this hash.
    assert first.identity["weights"] != second.identity["weights"]
    found = []
    for network, source in ((first, model), (second, small(**changes))):
        assert (network.size, network.margin, network.patients) == (SIZE, 296, {"p"})
        found.append(network.call(tri_label=label)["image"])
        np.testing.assert_allclose(found[-1], source.infill(label), atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert export.read_card(again)["config"]["model"]["sampling_steps"] == 1
    can = export.export(KnownCAN("can", 32, 0.5), tmp_path / "can", {"config": {}})
    for source, changes, error, named in (
        (folder, {"widths": (4,)}, ConfigError, "widths"),
        (folder, {"guidance": 2.0}, ConfigError, "guidance"),  # it was trained with its condition
        (can, {}, ExportError, "flow"),
    ):
        with pytest.raises(error, match=named):
            export_again(source, tmp_path / "two", **changes)

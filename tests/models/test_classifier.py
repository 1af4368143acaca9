"""The classifier: its network, the decaying share, the mixing of pools, weights, refusals."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.updates import assert_descends
from tfmammo.errors import ConfigError
from tfmammo.models.classifier import Classifier, ClassifierConfig, resnet, share_at

TINY = {"weights": "none", "filters": 2, "blocks": (1, 1, 1, 1), "learning_rate": 1e-3}
SIZE = 32


def make_model(**values):
    keras.utils.set_random_seed(1)
    return Classifier(ClassifierConfig(**{**TINY, **values}), SIZE)


def batch(each=2, pools=4):
    """The pools in turn, told apart by their intensity: pool / 10."""
    labels = np.tile(np.arange(pools), each).astype(np.int32)
    images = np.ones((len(labels), SIZE, SIZE, 1)) * labels[:, None, None, None] / 10
    return {"image": tf.constant(images, tf.float32), "label": tf.constant(labels)}


@pytest.mark.slow
def test_it_is_resnet_50_with_a_grey_input_and_one_logit():
    """Keras's network of random weights gives the same features.

    Its input is blue, green and red less ImageNet's means.
    """
    keras.utils.set_random_seed(0)
    theirs = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg")
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(2.0 * np.ones(layer.moving_variance.shape))
    ours = resnet(64)
    for layer in theirs.layers:
        if layer.weights:
            ours.get_layer(layer.name).set_weights(layer.get_weights())
    image = np.random.default_rng(0).random((2, 64, 64, 1)).astype(np.float32)
    colour = 255 * np.repeat(image, 3, axis=-1) - np.float32([103.939, 116.779, 123.68])
    features, logit = ours(image)
    np.testing.assert_allclose(features, theirs(colour), rtol=1e-4, atol=1e-4)
    assert logit.shape == (2, 1) and ours.count_params() == 23_587_712 + 2049
    assert sum(int(np.prod(weight.shape)) for weight in ours.trainable_variables) == 23_536_641


@pytest.mark.parametrize(
    ("how", "samples", "expected"),
    [
        ("factor", 0, 0.5),
        ("factor", 4999, 0.5),
        ("factor", 5000, 0.45),
        ("factor", 10_000, 0.405),
        ("factor", 500_000, 0.5 * 0.9**100),
        ("points", 4999, 0.5),
        ("points", 5000, 0.4),
        ("points", 25_000, 0.0),
        ("points", 500_000, 0.0),
    ],
)
def test_the_share_decays_by_a_tenth_every_5000_of_the_papers_samples(how, samples, expected):
    settings = ClassifierConfig(share=0.5, decay_as=how, samples=500_000)
    found = float(share_at(settings, tf.constant(samples, tf.int64)))
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("samples", [500_000, 8000, 1000])
def test_a_training_of_any_length_has_the_papers_mean_exposure(samples):
    """The mean share is a tenth of the share, whatever the length.

    The sum over 100 periods of 0.9^k is (1 - 0.9^100) / (1 - 0.9).
    """
    settings = ClassifierConfig(share=0.5, samples=samples)
    shares = share_at(settings, tf.range(0, samples, 10, tf.int64)).numpy()
    assert np.mean(shares) == pytest.approx(0.5 * (1 - 0.9**100) / 10, rel=1e-3)
    assert shares[-1] == pytest.approx(0.5 * 0.9**99, rel=1e-4)


def test_no_share_takes_all_real_patches_and_a_full_one_the_synthetic_of_each_class():
    real = batch(pools=2)
    image, label, synthetic = make_model().mix(real)
    np.testing.assert_array_equal(image, real["image"])
    assert label.numpy().tolist() == [0, 1, 0, 1] and not np.any(synthetic)
    image, label, synthetic = make_model(share=1.0, samples=1000).mix(batch(each=3))
    assert label.numpy().tolist() == [0, 0, 0, 1, 1, 1] and np.all(synthetic)
    np.testing.assert_allclose(image[:, 0, 0, 0], [0.2] * 3 + [0.3] * 3, rtol=1e-6)
    with pytest.raises(ConfigError, match="model.samples"):
        make_model(share=0.5)


@pytest.mark.slow
def test_a_share_is_the_part_that_is_synthetic_and_the_labels_stay_right():
    model = make_model(share=0.3, samples=500_000)
    image, label, synthetic = model.mix(batch(each=2000))
    tolerance = 4 * np.sqrt(0.21 / 4000)
    assert len(label) == 4000 and np.mean(synthetic) == pytest.approx(0.3, abs=tolerance)
    expected = 0.2 * synthetic.numpy() + 0.1 * label.numpy()
    np.testing.assert_allclose(image[:, 0, 0, 0], expected, rtol=1e-6)
    # 4,000 samples each: 8,000, so that one decay is past
    model.optimizers["classifier"].iterations.assign(2)
    again = np.mean(model.mix(batch(each=2000))[2])
    assert again == pytest.approx(0.27, abs=tolerance) and again != np.mean(synthetic)


@pytest.mark.parametrize(("replicas", "synthetic"), [(1, 1), (2, 0)])
def test_the_samples_of_all_replicas_count(monkeypatch, replicas, synthetic):
    """The share is gone after 4 of 400 samples; a batch has two on each replica."""
    model = make_model(share=1.0, decay=1.0, samples=400)
    model.optimizers["classifier"].iterations.assign(1)
    context = SimpleNamespace(num_replicas_in_sync=replicas, replica_id_in_sync_group=0)
    monkeypatch.setattr(tf.distribute, "get_replica_context", lambda: context)
    assert np.all(model.mix(batch(each=1))[2] == synthetic)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_network_descends_binary_cross_entropy(share):
    model, reference = (make_model(share=share, samples=1000) for _ in range(2))
    data = batch(pools=4 if share else 2)
    image, label, _ = reference.mix(data)

    def loss():
        p = tf.sigmoid(reference.network(image, training=True)[1][:, 0])
        return -tf.reduce_mean(label * tf.math.log(p) + (1 - label) * tf.math.log(1 - p))

    assert_descends(model, reference, data, classifier=loss)


# of Keras, which reads its own variables
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_weights_of_a_file_are_taken_over(monkeypatch, tmp_path):
    """A ResNet-50 of two channels takes the place of Keras's."""

    def build(weights=None, include_top=False):
        network = make_model().network
        return keras.Model(network.input, network.outputs[0])

    theirs = build()
    random = np.random.default_rng(0)
    theirs.set_weights([random.uniform(size=weight.shape) for weight in theirs.get_weights()])
    path = str(tmp_path / "notop.weights.h5")
    theirs.save_weights(path)
    monkeypatch.setattr(keras.applications, "ResNet50", build)
    config = ClassifierConfig(**TINY).model_copy(update={"weights": path})
    network = Classifier(config, SIZE).network
    ours = keras.Model(network.input, network.outputs[0])
    for found, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)

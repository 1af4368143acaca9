"""What holds for every model and baseline: no state in answers, and refusals of Keras's ways."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmammo.baselines.fcn8s import FCN8s, FCN8sConfig
from tfmammo.baselines.pix2pix import Pix2Pix, Pix2PixConfig
from tfmammo.baselines.residual_unet import ResidualUNet, ResidualUNetConfig
from tfmammo.baselines.segnet import SegNet, SegNetConfig
from tfmammo.baselines.unet import UNet, UNetConfig
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.models.blending import Blending, BlendingConfig
from tfmammo.models.can import CAN, CANConfig
from tfmammo.models.cgan import CGAN, CGANConfig
from tfmammo.models.classifier import Classifier, ClassifierConfig
from tfmammo.models.contextual import Contextual, ContextualConfig
from tfmammo.models.flow import Flow, FlowConfig
from tfmammo.models.infilling import Infilling, InfillingConfig
from tfmammo.models.mask_gan import MaskGAN, MaskGANConfig
from tfmammo.models.shape import ShapeCNN, ShapeConfig
from tfmammo.nn.networks import Network
from tfmammo.nn.optimization import Adam

UNET = {"filters": (4, 8, 8), "discriminator_filters": 4, "discriminator_strided": 1}
DCGAN = {"filters": (8, 4), "discriminator_filters": (4, 8), "z": 5}
INFILLING = {**UNET, "weights": "none"}
# class, config, the config's values, size in px
TINY = {
    "can": (CAN, CANConfig, UNET, 32),
    "cgan": (CGAN, CGANConfig, UNET, 32),
    "cgan, three draws": (CGAN, CGANConfig, {**UNET, "samples": 3}, 32),
    "cgan, resnet": (
        CGAN,
        CGANConfig,
        {**UNET, "filters": (4, 4, 8, 8), "encoder": {"filters": 2, "blocks": (1, 1, 1, 1)}},
        32,
    ),
    "shape": (ShapeCNN, ShapeConfig, {"filters": (4, 4, 4), "units": 4}, 64),
    "mask_gan": (MaskGAN, MaskGANConfig, DCGAN, 32),
    "infilling": (Infilling, InfillingConfig, INFILLING, 32),
    "infilling, crn": (
        Infilling,
        InfillingConfig,
        {**INFILLING, "generator": "crn", "widths": (4, 4)},
        32,
    ),
    "flow": (
        Flow,
        FlowConfig,
        {"widths": (4, 8), "groups": 2, "attention_levels": 1, "sampling_steps": 2},
        32,
    ),
    "blending": (Blending, BlendingConfig, {"widths": (4, 8), "discriminator_filters": 4}, 32),
    "contextual": (
        Contextual,
        ContextualConfig,
        {"filters": (4, 8), "discriminator_factor": 1, "attention": 4, "border": 1, "start": 8},
        16,
    ),
    "classifier": (
        Classifier,
        ClassifierConfig,
        {"weights": "none", "filters": 2, "blocks": (1, 1, 1, 1)},
        32,
    ),
    "pix2pix": (Pix2Pix, Pix2PixConfig, UNET, 32),
    "vanilla_gan": (VanillaGAN, VanillaGANConfig, DCGAN, 32),
    "unet": (UNet, UNetConfig, {"widths": (4, 8)}, 32),
    "fcn8s": (FCN8s, FCN8sConfig, {"widths": (4,) * 5, "fc_width": 8}, 64),
    "segnet": (SegNet, SegNetConfig, {"widths": (4,) * 5}, 64),
    "residual_unet": (ResidualUNet, ResidualUNetConfig, {"widths": (4, 4), "blocks": (1, 1)}, 32),
}
UNUSUAL = {"learning_rate": 3e-3, "beta_1": 0.3, "beta_2": 0.7, "epsilon": 1e-5}


def make_model(name, **more):
    kind, config, values, size = TINY[name]
    return kind(config(**{**values, **more}), size)


@pytest.fixture(scope="module", params=TINY)
def model(request):
    return make_model(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name != "shape"])
def test_each_optimizer_is_adam_with_its_configs_values(name):
    fields = TINY[name][1].model_fields
    values = {key: value for key, value in UNUSUAL.items() if key in fields}
    model = make_model(name, **values)
    assert set(model.optimizers) == set(model.networks) - {"average"}
    for network, optimizer in model.optimizers.items():
        assert type(optimizer) is Adam and optimizer.name == network
        assert optimizer.get_config() == pytest.approx(
            {"beta_2": 0.999, "epsilon": 1e-7, "name": network} | values
        )


def test_the_shape_networks_optimizer_is_rmsprop_with_its_configs_values():
    (optimizer,) = make_model("shape", learning_rate=3e-3, momentum=0.3).optimizers.values()
    assert type(optimizer) is keras.optimizers.RMSprop
    assert float(optimizer.learning_rate) == pytest.approx(3e-3) and optimizer.momentum == 0.3


def operations(function):
    """The names of all operations of a tf.function, those of loops and calls within included."""
    graph = function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return {node.op for node in nodes}


@pytest.mark.slow
def test_nothing_that_is_exported_keeps_a_state_or_draws_by_one(model):
    for name, function in model.functions().items():
        found = operations(function)
        assert not {
            op
            for op in found
            if "Assign" in op or "Rng" in op or ("Random" in op and "Stateless" not in op)
        }, name
        rng = np.random.default_rng(0)
        inputs = [
            tf.constant(rng.random([2, *spec.shape[1:]], np.float32))
            for spec in function.input_signature
        ]
        first = function(*inputs)
        function(*(1 - values for values in inputs))
        for key, value in function(*inputs).items():
            np.testing.assert_array_equal(value, first[key], err_msg=f"{name}: {key}")


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (
            lambda model, path: model.save(path),
            "export.export.*export.load",
        ),
        (
            lambda model, path: keras.saving.save_model(model, path),
            "tfmammo.tracking.export.export",
        ),
        (
            lambda model, path: model.export(path),
            "tfmammo.tracking.export.export",
        ),
        (
            lambda model, path: model(np.zeros((1, 32, 32, 1))),
            r"model.networks\[NAME\]",
        ),
        (
            lambda model, path: model.fit(np.zeros(1), np.zeros(1)),
            "train_step.*python train/",
        ),
        (
            lambda model, path: model.compile("adam", "mse"),
            "train_step.*python train/",
        ),
        (
            lambda model, path: model.predict(np.zeros(1)),
            "train_step.*python train/",
        ),
    ],
)
def test_what_keras_would_do_wrongly_is_refused_in_one_sentence(
    model, tmp_path, repository, use, said
):
    with pytest.raises(NotImplementedError, match=f"^{type(model).__name__} .*{said}") as raised:
        use(model, tmp_path / "x.keras")
    message = str(raised.value)
    assert "\n" not in message
    for file in re.findall(r"(?:train|configs)/[\w.]+", message):
        assert (repository / file).is_file()


def test_a_save_that_is_refused_leaves_no_file(model, tmp_path):
    with pytest.raises(NotImplementedError):
        model.save(tmp_path / "x.keras")
    assert not list(tmp_path.iterdir())


# TensorFlow's
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_each_network_is_read_back_from_a_keras_file_or_refused(model, tmp_path):
    for name, network in model.networks.items():
        path = tmp_path / f"{name}.keras"
        if type(network).get_config is Network.get_config:
            with pytest.raises(
                NotImplementedError,
                match=f"^{type(network).__name__} can't be saved as a .keras file",
            ):
                network.save(path)
            continue
        network.save(path)
        x = tf.random.stateless_uniform([1, *network.input_shape[1:]], [0, 0])
        for found, expected in zip(
            *(tf.nest.flatten(which(x)) for which in (keras.saving.load_model(path), network)),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

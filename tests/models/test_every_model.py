"""What every model and baseline must do; their equations are tested in files of their own."""

import contextlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tests.full_size import build_without_memory, count_each
from tests.models.every import TINY, make_batch, make_model, make_random
from tests.two_cpus import run_on_two_cpus
from tests.updates import read_weights
from tfmammo.config import load
from tfmammo.errors import ConfigError
from tfmammo.models.can import CAN
from tfmammo.nn.networks import Network
from tfmammo.nn.optimization import Adam, build, unwrap
from tfmammo.training import loop

UNUSUAL = {"learning_rate": 3e-3, "beta_1": 0.3, "beta_2": 0.7, "epsilon": 1e-5}
# Trained numbers of the papers' networks. Infilling's are Pix2Pix's with two more input channels,
# 64 kernels of 16 weights for each; blending's G is Ronneberger's with two more, D by hand.
# The contextual GAN's are the sum over its paper's layers, 9 ab + b for a convolution of a to b
# channels, one of which is the number that is drawn for each block.
CONTEXTUAL = 4_386_871
COUNTS = {
    "can": {"generator": 54_407_809, "inverter": 54_407_809, "discriminator": 135_489},
    "cgan": {"generator": 13_607_937, "discriminator": 694_625},
    "contextual": {"generator": CONTEXTUAL, "average": CONTEXTUAL, "discriminator": 100_967_685},
    "shape": {"classifier": 768_132},
    "mask_gan": {"generator": 19_102_433, "discriminator": 17_480_385},
    "vanilla_gan": {"generator": 19_102_433, "discriminator": 17_480_385},
    "pix2pix": {"generator": 54_407_809, "discriminator": 2_764_609},
    "blending": {
        "generator": 31_030_593 + 2 * 9 * 64,
        "discriminator": 1088 + 131_072 + 256 + 524_288 + 512 + 257,
    },
    "flow": {"velocity": 3_240_934, "average": 3_240_934},
    "unet": {"segmenter": 31_030_593},
    "fcn8s": {"segmenter": 134_271_430},
    # the paper's, less its kernels of two more colours and of eleven more classes with a bias each
    "segnet": {"segmenter": 29_449_932 - 2 * 9 * 64 - 11 * (9 * 64 + 1)},
    "residual_unet": {"segmenter": 71_815_076},
}
SEGMENTED = ["image", "output", "truth"]
PANELS = {
    "can": ["mask", "synthetic", "real", "segmented"],
    "cgan": ["image", "segmented", "truth"],
    "cgan, three draws": ["image", "segmented", "uncertainty", "truth"],
    "shape": ["mask", "irregular lobular oval round"],
    "mask_gan": ["real", "generated", "cleaned"],
    "infilling": ["tissue", "mask", "margin", "synthetic", "real"],
    "flow": ["tissue", "mask", "margin", "synthetic", "another", "real"],
    "blending": ["tissue", "pasted", "synthetic", "real"],
    "contextual": ["patch", "lesion", "synthetic", "postprocessed"],
    "classifier": ["patch", "probability"],
    "pix2pix": ["input", "output", "truth"],
    "vanilla_gan": ["synthetic", "mean mask", "real"],
    "unet": SEGMENTED,
    "fcn8s": SEGMENTED,
    "segnet": SEGMENTED,
    "residual_unet": SEGMENTED,
}
# what a run that is not nightly compiles
COMPILED = {"can", "cgan", "blending", "contextual", "segnet", "classifier, two pools"}
# what takes more than four seconds
HEAVY = ("infilling", "infilling, crn", "flow", "contextual", "segnet")
WRONG_CONFIGS = [
    ("can", {"filters": []}),
    ("mask_gan", {"momentum": 1}),
    ("infilling", {"margin": 256}),
    ("infilling", {"margin": {"dilation": 0}}),
    ("flow", {"widths": (8, 12)}),
    ("flow", {"attention_levels": 5}),
    ("flow", {"guidance": 2}),
    ("blending", {"resize": (1.2, 0.8)}),
    ("blending", {"noise_guide": "none"}),
    ("classifier", {"filters": 32, "weights": "imagenet"}),
    ("unet", {"weights": "imagenet"}),
    ("residual_unet", {"blocks": (1, 1, 1)}),
]
# model, values, size in px; what the message names
WRONG_SIZES = [
    ("can", {}, 20, "data.size.*model.filters"),
    ("can", {"l1_window": 64}, 32, "model.l1_window"),
    ("can", {"discriminator_strided": 5}, 32, "model.discriminator_strided"),
    ("pix2pix", {}, 20, "data.size.*model.filters"),
    ("mask_gan", {"filters": (4,) * 6}, 32, "data.size.*model.filters"),
    ("mask_gan", {"discriminator_filters": (4,) * 6}, 32, "data.size.*discriminator_filters"),
    ("vanilla_gan", {}, 18, "data.size.*model"),
    ("infilling", {"filters": (4,) * 6}, 32, "data.size.*halved 6 times"),
    ("infilling, crn", {"widths": (4,) * 7}, 32, "data.size.*halved 6 times"),
    ("flow", {"widths": (4, 4, 4)}, 18, "data.size.*halved 2 times"),
    ("blending", {"widths": (4,) * 4}, 20, "data.size.*model.widths"),
    ("blending", {}, 8, "data.size.*16 px"),
    ("contextual", {}, 64, "data.size.*model.filters"),
    ("contextual", {"start": 24}, 24, "data.size"),
    ("contextual", {"attention": 32}, 16, "model.attention"),
    ("contextual", {"attention": 8}, 16, "model.attention"),
    ("contextual", {"border": 8}, 16, "model.border"),
    ("shape", {}, 32, "data.size"),
    ("classifier", {}, 16, "data.size"),
    ("unet", {}, 33, "data.size"),
    ("fcn8s", {}, 48, "data.size"),
    ("segnet", {}, 16, "data.size"),
    ("residual_unet", {}, 37, "data.size"),
]


@pytest.fixture(scope="module", params=TINY)
def model(request):
    return make_model(request.param)


def mark_heavy(name, *values):
    return pytest.param(name, *values, marks=[pytest.mark.long] * (name in HEAVY))


def make_seeded(name):
    keras.utils.set_random_seed(3)
    return make_model(name)


@pytest.mark.parametrize("name", [name for name in TINY if "," not in name])
def test_the_papers_values_in_the_shipped_config_are_the_defaults(name, repository):
    config = TINY[name][1]
    shipped = load(repository / "configs" / f"{name}.yaml", model=config).model
    assert shipped == config()
    # which a study or the number of steps decides
    assert set(config.model_fields) - shipped.model_fields_set <= {"judge_seed", "samples"}


@pytest.mark.parametrize(("name", "values"), WRONG_CONFIGS)
def test_configs_that_make_no_sense_are_refused_by_their_key(name, values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        TINY[name][1](**values)


@pytest.mark.parametrize(("name", "values", "size", "named"), WRONG_SIZES)
def test_patches_that_do_not_fit_are_refused_by_their_key(name, values, size, named):
    kind, config, tiny, _ = TINY[name]
    with pytest.raises(ConfigError, match=named):
        kind(config(**{**tiny, **values}), size)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name == "flow")) for name in COUNTS]
)
def test_the_papers_networks(name, monkeypatch):
    assert count_each(build_without_memory(TINY[name][0], monkeypatch)) == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name != "shape"])
def test_each_optimizer_is_adam_with_its_configs_values(name):
    fields = TINY[name][1].model_fields
    values = {key: value for key, value in UNUSUAL.items() if key in fields}
    model = make_model(name, **values)
    assert set(model.optimizers) == set(model.networks) - {"average"}
    for network, optimizer in model.optimizers.items():
        assert type(optimizer) is Adam and optimizer.name == network
        expected = {"beta_2": 0.999, "epsilon": 1e-7} | values
        config = optimizer.get_config()
        assert {key: config[key] for key in expected} == pytest.approx(expected)


def test_the_shape_networks_optimizer_is_rmsprop_with_its_configs_values():
    (optimizer,) = make_model("shape", learning_rate=3e-3, momentum=0.3).optimizers.values()
    assert type(optimizer) is keras.optimizers.RMSprop
    assert float(optimizer.learning_rate) == pytest.approx(3e-3) and optimizer.momentum == 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", [mark_heavy(name) for name in TINY])
def test_a_training_step_in_a_graph_equals_one_outside(name):
    eager, graph = make_seeded(name), make_seeded(name)
    batch = make_batch(name)
    step = tf.function(graph.train_step)
    for _ in range(1 if "three draws" in name else 2):
        losses = step(batch)
        if "three draws" in name:
            continue
        for key, value in eager.train_step(batch).items():
            np.testing.assert_allclose(losses[key], value, rtol=2e-3, atol=1e-5, err_msg=key)
    for key, value in losses.items():
        assert value.dtype == tf.float32 and value.shape == () and np.isfinite(value), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "policy"),
    [mark_heavy(name, "mixed_float16") for name in TINY]
    + [mark_heavy(name, "mixed_bfloat16") for name in ("can", "flow", "contextual", "segnet")],
)
def test_mixed_precision_trains_and_answers_in_float32(name, policy):
    expected = make_seeded(name).train_step(make_batch(name))
    keras.config.set_dtype_policy(policy)
    model = make_seeded(name)
    first = model.train_step(make_batch(name))
    if "three draws" not in name:
        for key in (key for key in first if key.endswith("loss")):
            np.testing.assert_allclose(first[key], expected[key], rtol=0.1, atol=0.05, err_msg=key)
    for losses in (first, model.train_step(make_batch(name))):
        assert all(value.dtype == tf.float32 and np.isfinite(value) for value in losses.values())
    for optimizer in model.optimizers.values():
        assert optimizer.built
        assert (unwrap(optimizer) is not optimizer) == (policy == "mixed_float16")
    assert all(panel.dtype == tf.float32 for panel in model.sample(make_batch(name)).values())
    for network in model.networks.values():
        assert all(weight.dtype == "float32" for weight in network.trainable_variables)
        assert all(np.isfinite(weight).all() for weight in network.get_weights())


@pytest.mark.slow
def test_panels_of_the_image_grid(request, model):
    name = request.node.callspec.params["model"]
    batch = make_batch(name)
    panels = model.sample(batch)
    again = model.sample(batch)
    assert list(panels) == PANELS.get(name, PANELS[name.partition(",")[0]])
    for key in set(panels) & {"mask", "real", "truth"}:
        is_mask = key == "mask" or name == "mask_gan" or (key == "truth" and name != "pix2pix")
        np.testing.assert_array_equal(panels[key], batch["mask" if is_mask else "image"])
    for key, panel in panels.items():
        assert panel.shape == batch["mask"].shape and panel.dtype == tf.float32, key
        assert np.min(panel) >= 0 and np.max(panel) <= 1, key
        np.testing.assert_array_equal(panel, again[key], err_msg=key)


@pytest.mark.parametrize("name", ["blending", "contextual", "classifier"])
def test_a_batch_without_labels_is_refused(name):
    batch = make_batch(name)
    del batch["label"]
    with pytest.raises(ConfigError, match="label"):
        make_model(name).train_step(batch)


def take_frozen_steps(model, batch, restart):
    """Return the losses of two steps that change nothing; `restart` makes both the first one."""
    for optimizer in model.optimizers.values():
        optimizer.learning_rate = 0.0
    found = []
    for _ in range(2):
        found.append([float(value) for value in model.train_step(batch).values()])
        for optimizer in model.optimizers.values() if restart else ():
            optimizer.iterations.assign(0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["can", "cgan", "infilling", "pix2pix", "shape", "unet", "fcn8s"])
def test_dropout_drops_in_every_training_step_and_by_no_state_at_inference(name):
    model = make_model(name, dropout=0.5)
    batch = make_batch(name)
    for _ in range(2):  # FCN-8s starts with scores of 0
        model.train_step(batch)
    first, second = take_frozen_steps(model, batch, restart=True)
    assert first != second
    panels = model.sample(batch)
    for key, panel in model.sample(batch).items():
        np.testing.assert_array_equal(panel, panels[key])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["blending", "classifier, two pools", "contextual", "flow", "infilling", "mask_gan"]
)
def test_each_step_draws_random_numbers_of_its_own(name):
    first, second = take_frozen_steps(make_seeded(name), make_batch(name), restart=False)
    assert first != pytest.approx(second, rel=1e-6)


def operations(function):
    """The names of all operations of a tf.function, those of loops and calls within included."""
    graph = function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return {node.op for node in nodes}


def draw_inputs(function, count=2):
    random = np.random.default_rng(0)
    return {
        spec.name: tf.constant(random.random([count, *spec.shape[1:]], np.float32))
        for spec in function.input_signature
    }


def centre(*values):
    """From [0, 1] to [-1, 1], several as channels of one."""
    return tf.concat(values, -1) * 2 - 1


def add_lesion(network, image, noise):
    lesion = network(centre(image), noise)
    return {"lesion": lesion, "image": tf.clip_by_value(image + lesion / 2, 0, 1)}


# what the functions of a model answer, by its networks n
EXPORTED = {
    "can": {
        "generator": lambda n, mask: {"image": n["generator"](centre(mask)) / 2 + 0.5},
        "inverter": lambda n, image: {"mask": n["inverter"](centre(image)) / 2 + 0.5},
        "discriminator": lambda n, mask, image: {"logits": n["discriminator"](centre(mask, image))},
    },
    "cgan": {
        "generator": lambda n, image: {"mask": n["generator"](image)},
        "discriminator": lambda n, mask, image: {
            "logits": n["discriminator"](tf.concat([image, mask], -1))
        },
    },
    "shape": {"classifier": lambda n, mask: {"shapes": tf.nn.softmax(n["classifier"](mask))}},
    "mask_gan": {
        "generator": lambda n, noise: {"mask": n["generator"](noise) / 2 + 0.5},
        "discriminator": lambda n, mask: {"logits": n["discriminator"](centre(mask))},
    },
    "infilling": {
        "generator": lambda n, tri_label: {"image": n["generator"](centre(tri_label)) / 2 + 0.5},
        "discriminator": lambda n, tri_label, image: {
            "logits": n["discriminator"](centre(tri_label, image))
        },
    },
    "flow": {
        "velocity": lambda n, tri_label, time: {"velocity": n["velocity"](centre(tri_label), time)}
    },
    "blending": {
        # the mask is above 0 everywhere, so that the lesion is pasted everywhere
        "generator": lambda n, pasted: {"image": n["generator"](centre(pasted)) / 2 + 0.5},
        "discriminator": lambda n, image: {"logits": n["discriminator"](centre(image))},
    },
    "contextual": {
        "average": lambda n, image, noise: add_lesion(n["average"], image, noise),
        "generator": lambda n, image, noise: add_lesion(n["generator"], image, noise),
        "discriminator": lambda n, image: {"logits": n["discriminator"](centre(image))},
    },
    "classifier": {
        "classifier": lambda n, image: {
            "features": n["classifier"](image)[0],
            "probability": tf.sigmoid(n["classifier"](image)[1][:, 0]),
        }
    },
    "pix2pix": {
        "generator": lambda n, mask: {"image": n["generator"](centre(mask)) / 2 + 0.5},
        "discriminator": lambda n, mask, image: {"logits": n["discriminator"](centre(mask, image))},
    },
    "pix2pix, inverse": {
        "generator": lambda n, image: {"mask": n["generator"](centre(image)) / 2 + 0.5},
        "discriminator": lambda n, mask, image: {"logits": n["discriminator"](centre(image, mask))},
    },
    "vanilla_gan": {
        "generator": lambda n, noise: {
            "image": n["generator"](noise)[..., :1] / 2 + 0.5,
            "mask": n["generator"](noise)[..., 1:] / 2 + 0.5,
        },
        "discriminator": lambda n, image: {"logits": n["discriminator"](centre(image))},
    },
    "unet": {"segmenter": lambda n, image: {"mask": tf.sigmoid(n["segmenter"](image))}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_exported_is_the_networks_answer(name):
    size = {"shape": 64, "classifier": 32}.get(name, 16)
    values = {"direction": "image_to_mask"} if "inverse" in name else {}
    model = make_random(name.partition(",")[0], size, 0.1, **values)
    functions = model.functions()
    assert set(EXPORTED[name]) == set(functions) - ({"average"} if name == "flow" else set())
    for function, answer in EXPORTED[name].items():
        inputs = draw_inputs(functions[function])
        found, expected = functions[function](**inputs), answer(model.networks, **inputs)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.slow
def test_nothing_that_is_exported_keeps_a_state_or_draws_by_one(model):
    assert set(model.functions()) <= set(model.networks)
    for name, function in model.functions().items():
        found = operations(function)
        assert not {
            op
            for op in found
            if "Assign" in op or "Rng" in op or ("Random" in op and "Stateless" not in op)
        }, name
        inputs = draw_inputs(function)
        first = function(**inputs)
        function(**{key: 1 - values for key, values in inputs.items()})
        alone = function(**{key: values[1:] for key, values in inputs.items()})
        for key, value in function(**inputs).items():
            assert value.dtype == tf.float32 and len(value) == 2
            np.testing.assert_array_equal(value, first[key], err_msg=f"{name}: {key}")
            np.testing.assert_allclose(alone[key][0], value[1], atol=1e-4, err_msg=f"{name}: {key}")
            if key in ("image", "mask"):
                assert np.min(value) >= 0 and np.max(value) <= 1


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.nightly] * (name not in COMPILED)) for name in TINY],
)
def test_a_step_compiled_by_xla_is_the_same_step(name):
    """By SGD, because Adam's first step has the same size however small a gradient is."""
    found = []
    for jit_compile in (False, True):
        model = make_seeded(name)
        model.optimizers = {
            key: build(keras.optimizers.SGD(0.01), model.networks[key]) for key in model.optimizers
        }
        losses = tf.function(model.train_step, jit_compile=jit_compile)(make_batch(name))
        found.append((losses, read_weights(model)))
    (losses, weights), (compiled, compiled_weights) = found
    for key, value in losses.items():
        np.testing.assert_allclose(compiled[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
    for key in weights:
        for ours, theirs in zip(weights[key], compiled_weights[key], strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=2e-5, err_msg=key)


class Uncompilable(CAN):
    """XLA has no MaxPoolWithArgmax."""

    def train_step(self, batch):
        pooled, _ = tf.nn.max_pool_with_argmax(batch["image"], 2, 2, "SAME")
        return super().train_step(batch) | {"pooled": tf.reduce_mean(pooled)}


@pytest.mark.long
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_training_run_compiles_its_step_where_it_is_asked_to(
    tiny_can, random_patches, tmp_path, jit_compile
):
    experiment = tiny_can(steps=1, jit_compile=jit_compile)
    run = loop.Training(
        lambda: Uncompilable(experiment.model, experiment.data.size),
        experiment,
        random_patches(4),
        random_patches(2),
        tmp_path / "run",
        lambda *_: {"dice": 0.0},
        monitor="dice",
    )
    refused = pytest.raises(tf.errors.InvalidArgumentError, match="MaxPoolWithArgmax")
    with refused if jit_compile else contextlib.nullcontext():
        run.fit()


TWO_REPLICAS = """
from tests.models.every import make_batch, make_model
from tfmammo.models.contextual import perturbation
from tfmammo.nn.optimization import build, unwrap

def perturb(strategy):
    # DRAGAN's deviation is that of all patches
    whole = make_batch("contextual", 12)["image"].numpy()
    rows = 12 // strategy.num_replicas_in_sync
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(whole[rows * context.replica_id_in_sync_group:][:rows]))
    found = strategy.run(lambda x: perturbation(x, tf.ones([rows]), tf.ones([rows, 1, 1, 1])), args=(shares,))
    return float(np.ravel(strategy.experimental_local_results(found)[0])[0])

def train(strategy, name, steps, kind=None):
    # Not 0, from which noise of 1e-7 in the weights, as rounding makes it, becomes 1e-4 in three steps of blending.
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = make_model(name)
        if kind:  # by SGD, because Adam's first steps have one size however small a gradient is
            model.optimizers = {key: build(kind(0.01), model.networks[key]) for key in model.optimizers}
    batch = {key: values.numpy() for key, values in make_batch(name, 12).items()}
    data = tf.data.Dataset.from_tensor_slices(batch).batch(12).repeat()
    if strategy.num_replicas_in_sync > 1:
        data = strategy.experimental_distribute_dataset(data)

    @tf.function
    def step(batch):
        losses = strategy.run(model.train_step, args=(batch,))
        return {key: strategy.reduce(tf.distribute.ReduceOp.MEAN, loss, axis=None) for key, loss in losses.items()}

    batches = iter(data)
    history = [{key: float(loss) for key, loss in step(next(batches)).items()} for _ in range(steps)]
    local = strategy.experimental_local_results
    copies = {
        f"{key} {number} {variable.name}": [one.numpy().ravel().tolist() for one in local(variable.value)]
        for key, network in model.networks.items()
        for number, variable in enumerate(network.variables)
        if "seed_generator" not in variable.path
    }
    scaled = [unwrap(each) is not each and unwrap(each).built for each in model.optimizers.values()]
    return {"history": history, "copies": copies, "scaled": scaled}

one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
results = {}
for name in ("can", "cgan", "blending", "infilling", "flow", "contextual", "vanilla_gan"):
    results[name] = [train(strategy, name, 3, keras.optimizers.SGD) for strategy in (one, two)]
keras.config.set_dtype_policy("mixed_float16")
for name in ("can", "flow"):
    results[name].append(train(two, name, 20))
print(json.dumps([results, [perturb(strategy) for strategy in (one, two)]]))
"""  # noqa: E501
# whose random numbers are each replica's own, and the variables that agree all the same
DRAWN = {"contextual": "none", "vanilla_gan": " mean"}  # of all masks


@pytest.mark.long
def test_two_replicas_train_as_one_does_and_under_float16_too(tmp_path):
    results, deviations = run_on_two_cpus(TWO_REPLICAS, tmp_path)
    assert deviations[0] == pytest.approx(deviations[1], rel=1e-5)
    for name, (one, two, *half) in results.items():
        for path, copies in two["copies"].items():
            np.testing.assert_array_equal(*copies, err_msg=f"{name}: {path}")
            if DRAWN.get(name, "") in path:
                np.testing.assert_allclose(
                    copies[0], one["copies"][path][0], rtol=0, atol=2e-5, err_msg=f"{name}: {path}"
                )
        for a, b in zip(one["history"], two["history"], strict=True):
            assert name in DRAWN or b == pytest.approx(a, rel=1e-4, abs=1e-5), name
        for found in half:
            assert all(found["scaled"]) and not any(one["scaled"])
            for key, loss in one["history"][0].items():
                np.testing.assert_allclose(found["history"][0][key], loss, rtol=3e-2, atol=1e-2)
            losses = [list(each.values()) for each in found["history"]]
            # some steps are skipped until the loss scale fits, not all
            assert np.isfinite(losses).all() and losses[-1][0] < losses[0][0], name


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda model, path: model.save(path), "export.export.*export.load"),
        (lambda model, path: keras.saving.save_model(model, path), "tracking.export.export"),
        (lambda model, path: model.export(path), "tracking.export.export"),
        (lambda model, path: model(np.zeros((1, 32, 32, 1))), r"model.networks\[NAME\]"),
        (lambda model, path: model.compile("adam", "mse"), "train_step.*python train/"),
        (lambda model, path: model.predict(np.zeros(1)), "train_step.*python train/"),
    ],
)
def test_what_keras_would_do_wrongly_is_refused_in_one_sentence(tmp_path, use, said):
    with pytest.raises(NotImplementedError, match=f"^CAN .*{said}") as raised:
        use(make_model("can"), tmp_path / "x.keras")
    assert "\n" not in str(raised.value)


def test_a_save_that_is_refused_leaves_no_file(tmp_path):
    with pytest.raises(NotImplementedError):
        make_model("can").save(tmp_path / "x.keras")
    assert not list(tmp_path.iterdir())


def test_fit_names_the_models_script_and_config(model, repository):
    said = f"^{type(model).__name__} .*train_step.*python train/"
    with pytest.raises(NotImplementedError, match=said) as raised:
        model.fit(np.zeros(1), np.zeros(1))
    for file in re.findall(r"(?:train|configs)/[\w.]+", str(raised.value)):
        assert (repository / file).is_file()


# TensorFlow's
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_each_network_is_read_back_from_a_keras_file_or_refused(model, tmp_path):
    for name, network in model.networks.items():
        path = tmp_path / f"{name}.keras"
        if type(network).get_config is Network.get_config:
            with pytest.raises(NotImplementedError, match=f"^{type(network).__name__} can't be"):
                network.save(path)
            continue
        network.save(path)
        x = tf.random.stateless_uniform([1, *network.input_shape[1:]], [0, 0])
        for found, expected in zip(
            *(tf.nest.flatten(which(x)) for which in (keras.saving.load_model(path), network)),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

"""What a model must offer, broken in one place at a time."""

import keras
import pytest
import tensorflow as tf

from tfmammo.config import TrainingConfig
from tfmammo.errors import ConfigError, TrainingError
from tfmammo.training import contract

SPEC = tf.TensorSpec([None, 4, 4, 1], tf.float32, "image")


class Model:
    """A model that keeps the contract."""

    name = "model"

    def __init__(self):
        network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(1, 1)])
        optimizer = keras.optimizers.Adam()
        optimizer.build(network.trainable_variables)
        self.networks = {"inverter": network}
        self.optimizers = {"inverter": optimizer}

    def train_step(self, batch):
        return {"loss": tf.zeros([])}

    def sample(self, batch):
        return batch

    def functions(self):
        @tf.function(input_signature=[SPEC])
        def inverter(image):
            return {"mask": self.networks["inverter"](image)}

        return {"inverter": inverter}


def check(model, functions, **training):
    contract.check_model(model, functions, TrainingConfig(**training))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("networks", {}),
        ("networks", {"inverter": keras.Sequential()}),  # without weights
        ("optimizers", {}),
        ("optimizers", {"renderer": keras.optimizers.SGD()}),  # of another network
        ("optimizers", {"inverter": keras.optimizers.SGD()}),  # not built
        ("sample", None),
    ],
)
def test_what_is_broken_is_named(monkeypatch, name, value):
    model = Model()
    functions = model.functions()
    if value is None:
        monkeypatch.delattr(Model, name)
    else:
        setattr(model, name, value)
    with pytest.raises(TrainingError, match="^Model"):
        check(model, functions)


UNNAMED, WHOLE = tf.TensorSpec([None, 4, 4, 1]), tf.TensorSpec([4], tf.int32, "image")


@pytest.mark.parametrize(
    ("name", "spec", "answer"),
    [
        (None, SPEC, None),
        ("segmenter", SPEC, lambda image: {"mask": image}),
        ("inverter", None, lambda image: {"mask": image}),
        ("inverter", UNNAMED, lambda image: {"mask": image}),
        ("inverter", WHOLE, lambda image: {"mask": image}),
        ("inverter", SPEC, lambda image: image),
        ("inverter", SPEC, lambda patch: {"mask": patch}),
    ],
)
def test_a_function_that_could_not_be_exported_is_refused(name, spec, answer):
    function = tf.function(answer, input_signature=[spec]) if spec and answer else answer
    with pytest.raises(TrainingError, match="^Model.functions"):
        check(Model(), {name: function} if name else {})


@pytest.mark.parametrize(
    ("training", "reason"),
    [({"jit_compile": True}, "not_for_xla"), ({"accumulate": 2}, "not_for_accumulation")],
)
def test_what_a_model_states_that_it_cannot_do_is_refused(training, reason):
    model = Model()
    check(model, model.functions(), **training)
    setattr(model, reason, "because it says so")
    check(model, model.functions())
    with pytest.raises(ConfigError, match=f"training.{next(iter(training))}.*says so"):
        check(model, model.functions(), **training)


def test_gradients_in_half_the_bytes_need_the_packages_adam():
    model = Model()
    with pytest.raises(ConfigError, match="training.exchange"):
        check(model, model.functions(), exchange="bfloat16")

"""What a model must offer, broken in one place at a time."""

import keras
import pytest
import tensorflow as tf

from tfmammo.errors import TrainingError
from tfmammo.training import contract

SPEC = tf.TensorSpec([None, 4, 4, 1], tf.float32, "image")


class Model:
    """A model that keeps the contract."""

    def __init__(self):
        network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(1, 1)])
        optimizer = keras.optimizers.SGD()
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


def function(signature, answer):
    return tf.function(answer, input_signature=signature)


def test_a_model_that_keeps_the_contract_passes():
    model = Model()
    contract.check_model(model, model.functions())


BROKEN = {
    "networks: must be a dict": lambda model: setattr(model, "networks", {}),
    "networks: inverter has no weights yet": lambda model: setattr(
        model, "networks", {"inverter": keras.Sequential()}
    ),
    "optimizers: must be a dict": lambda model: setattr(model, "optimizers", None),
    "optimizers: renderer is named after none of the networks inverter": lambda model: setattr(
        model, "optimizers", {"renderer": model.optimizers["inverter"]}
    ),
    "optimizers: inverter is not built": lambda model: setattr(
        model, "optimizers", {"inverter": keras.optimizers.SGD()}
    ),
    r"train_step: must be a function of \(batch\), not of \(\)": lambda model: setattr(
        model, "train_step", lambda: {}
    ),
    r"sample: must be a function of \(batch\), not None": lambda model: setattr(
        model, "sample", None
    ),
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_is_broken_is_named(said):
    model = Model()
    functions = model.functions()
    BROKEN[said](model)
    with pytest.raises(TrainingError, match=f"^Model.{said}"):
        contract.check_model(model, functions)


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ({}, "must return a dict of tf.functions"),
        (
            {"segmenter": function([SPEC], lambda image: {"mask": image})},
            "segmenter is named after none of the networks inverter",
        ),
        (
            {"inverter": lambda image: {"mask": image}},
            "inverter: .*input_signature",
        ),
        (
            {"inverter": function([tf.TensorSpec([None, 4, 4, 1])], lambda image: {"mask": image})},
            "inverter: .*input must",
        ),
        (
            {
                "inverter": function(
                    [tf.TensorSpec([4], tf.int32, "image")], lambda image: {"mask": image}
                )
            },
            "inverter: every input must be",
        ),
        (
            {"inverter": function([SPEC], lambda image: image)},
            "inverter: .*tensors",
        ),
        (
            {"inverter": function([SPEC], lambda patch: {"mask": patch})},
            r"inverter: .*\(patch\)",
        ),
    ],
)
def test_a_function_that_could_not_be_exported_is_named(functions, said):
    with pytest.raises(TrainingError, match=f"^Model.functions: {said}"):
        contract.check_model(Model(), functions)


@pytest.mark.parametrize("losses", [{}, tf.zeros([]), {"loss": tf.zeros([4])}, {"loss": None}])
def test_losses_are_scalars_by_name(losses):
    contract.check_losses(Model(), {"loss": tf.zeros([]), "other": 1.0})
    with pytest.raises(TrainingError, match="Model.train_step"):
        contract.check_losses(Model(), losses)


def test_a_validation_gives_at_least_one_number():
    def validate(functions, held_out):
        return {}

    with pytest.raises(TrainingError, match="^validate: must return metrics by name"):
        contract.check_metrics(validate, validate(None, None), "dice")
    contract.check_signature("validate", validate, "functions", "held_out")
    with pytest.raises(TrainingError, match="held_out"):
        contract.check_signature("validate", validate, "functions", "held_out", "more")

"""Train the infilling GAN: tissue, mask and margin to a mass patch.

See tfmammo/models/infilling.py.

tfmammo train infilling --config infilling --set data.name=ddsm data.root=DIR
model.weights=FILE
"""

from functools import partial

from tfmammo import cli
from tfmammo.evaluation.validation import validate_infilling
from tfmammo.models.infilling import Infilling, InfillingConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    with script.start(__doc__, InfillingConfig) as command:
        model = command.experiment.model
        train, held_out = command.open_subsets()
        build = partial(Infilling, model, command.experiment.data.size)
        validate = partial(validate_infilling, margin=model.margin)
        command.fit(build, train, held_out, validate, monitor="ssim")


if __name__ == "__main__":
    cli.run(main)

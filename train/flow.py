"""Train the rectified flow: tissue, mask and margin to a mass patch, by many small steps.

See tfmammo/models/flow.py.

tfmammo train flow --config flow --set data.name=cbis_ddsm data.root=DIR
"""

from functools import partial

from tfmammo import cli
from tfmammo.evaluation.validation import validate_flow
from tfmammo.models.flow import Flow, FlowConfig
from tfmammo.training import script


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    with script.start(__doc__, FlowConfig) as command:
        model = command.experiment.model
        train, held_out = command.open_subsets()
        build = partial(Flow, model, command.experiment.data.size)
        validate = partial(validate_flow, margin=model.margin)
        command.fit(build, train, held_out, validate, monitor="likeness")


if __name__ == "__main__":
    cli.run(main)

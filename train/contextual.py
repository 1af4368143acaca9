"""Train a contextual GAN: lesions added to normal patches, or removed from others.

See tfmammo/models/contextual.py.

Half of the held-out patients choose the best checkpoint, as in the classifier study, which tests on
the other half.

tfmammo train contextual --config contextual --set data.name=optimam data.root=DIR
model.target=mass
"""

from tfmammo import cli
from tfmammo.models.contextual import ContextualConfig
from tfmammo.studies import progressive
from tfmammo.training import script


def main() -> None:
    """Read the config, split the patches by patient, train size after size, export."""
    with script.start(__doc__, ContextualConfig, complete=progressive.set_kinds) as command:
        metrics, inputs = progressive.train(command.experiment, command.output)
        script.print_summary(command.experiment, metrics, inputs, command.output)


if __name__ == "__main__":
    cli.run(main)

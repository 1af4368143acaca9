"""Train a classifier of patches with and without lesions, on real and synthetic ones.

See tfmammo/models/classifier.py.

tfmammo train classifier --config classifier --set data.name=optimam data.root=DIR
model.share=0.5 model.synthetic=DIR
"""

from tfmammo import cli
from tfmammo.models.classifier import ClassifierConfig
from tfmammo.studies import classification
from tfmammo.training import script


def main() -> None:
    """Read the config, split the archive by patient, train, export."""
    with script.start(__doc__, ClassifierConfig) as command:
        metrics, subsets = classification.train(command.experiment, command.output)
        script.print_summary(command.experiment, metrics, subsets.validation, command.output)


if __name__ == "__main__":
    cli.run(main)

"""Train the classifier of patches, a lesion or none, on real and synthetic patches (see
tfmammo/models/classifier.py).

python train/classifier.py --config configs/classifier.yaml --set data.name=optimam data.root=DIR
model.share=0.5 model.synthetic=DIR
"""

from tfmammo import cli, datasets
from tfmammo import config as configuration
from tfmammo.models.classifier import ClassifierConfig
from tfmammo.studies import classification
from tfmammo.training import script


def main() -> None:
    """Read the config, split the archive by patient, train, export."""
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, ClassifierConfig)
    script.prepare(experiment.training)
    output = chosen.output or script.default_output(experiment)
    datasets.announce(experiment.data)
    metrics, sides = classification.train(experiment, output)
    script.summary(experiment, metrics, sides.validation, output)


if __name__ == "__main__":
    cli.run(main)

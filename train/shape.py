"""Train the shape CNN: the mask of a mass to irregular, lobular, oval or round (see
tfmammo/models/shape.py).

python train/shape.py --config configs/shape.yaml --set data.name=ddsm data.root=DIR data.fold=0
"""

from functools import partial

import numpy as np

from tfmammo import cli, datasets, export
from tfmammo import config as configuration
from tfmammo.data.patches import Patches, shape_patches
from tfmammo.metrics.classification import one_versus_rest
from tfmammo.models.shape import SHAPES, ShapeCNN, ShapeConfig, class_weights
from tfmammo.training import loop, script


def main() -> None:
    """Read the config, split the masks by patient, weigh the classes, train, export."""
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, ShapeConfig)
    script.prepare(experiment.training)
    output = chosen.output or script.default_output(experiment)
    train, held_out = datasets.datasets(experiment.data, output, shape_patches)
    assert isinstance(train, Patches)
    weights = class_weights(np.bincount(train.labels, minlength=len(SHAPES)).tolist())
    room = partial(ShapeCNN, experiment.model, experiment.data.size, weights)
    metrics = loop.fit(room, experiment, train, held_out, output, validate)
    script.summary(experiment, metrics, held_out, output)


def validate(functions: loop.Functions, held_out: Patches) -> dict[str, float]:
    """Held-out accuracy, and the mean area under the ROC curves of each shape against the others,
    where there are others.
    """
    probabilities = export.predict(
        functions["classifier"], "mask", held_out.masks.astype(np.float32), batch=64
    )["shapes"]
    areas = one_versus_rest(held_out.labels, probabilities)
    found = {"accuracy": float(np.mean(probabilities.argmax(axis=1) == held_out.labels))}
    return found | ({} if np.isnan(areas).all() else {"auc": float(np.nanmean(areas))})


if __name__ == "__main__":
    cli.run(main)

"""Train the shape CNN: the mask of a mass to irregular, lobular, oval or round.

See tfmammo/models/shape.py.

tfmammo train shape --config shape --set data.name=ddsm data.root=DIR data.fold=0
"""

from functools import partial

import numpy as np

from tfmammo import cli
from tfmammo.data.extraction import make_shape_patches
from tfmammo.evaluation.validation import validate_shapes
from tfmammo.models.shape import SHAPES, ShapeCNN, ShapeConfig, class_weights
from tfmammo.training import script


def main() -> None:
    """Read the config, split the masks by patient, weigh the classes, train, export."""
    with script.start(__doc__, ShapeConfig) as command:
        experiment = command.experiment
        train, held_out = command.open_subsets(make_shape_patches)
        counts = np.bincount(train.load().labels, minlength=len(SHAPES)).tolist()
        build = partial(ShapeCNN, experiment.model, experiment.data.size, class_weights(counts))
        command.fit(build, train, held_out, validate_shapes, monitor="accuracy")


if __name__ == "__main__":
    cli.run(main)

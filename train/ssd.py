"""Train the SSD: whole mammograms to boxes, through the TensorFlow Object Detection API
(see tfmammo/detection/ssd.py).

python train/ssd.py --config configs/ssd.yaml --set data.name=inbreast data.root=DIR
"""

import os

# The API is written for Keras 2 and for protocol buffers of that time; both are chosen when
# TensorFlow is first imported.
os.environ |= {"TF_USE_LEGACY_KERAS": "1", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}

from functools import partial  # noqa: E402

from tfmammo import cli, datasets, filesystem
from tfmammo import config as configuration  # noqa: E402
from tfmammo.data.whole import make_whole  # noqa: E402
from tfmammo.detection import ssd  # noqa: E402
from tfmammo.detection.training import refuse_unused_size, seen, validate  # noqa: E402
from tfmammo.training import (
    folder,
    loop,
    script,
    workers,  # noqa: E402
)


def main() -> None:
    """Read the config, split the mammograms by patient, train, export."""
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, ssd.SSDConfig)
    workers.refuse(
        experiment.training, "the Object Detection API's detectors are trained by one process"
    )
    script.prepare(experiment.training)
    refuse_unused_size(chosen.set, experiment.data)
    ssd.check(experiment)
    output = chosen.output or script.default_output(experiment)
    data = experiment.data
    train, held_out = datasets.datasets(
        data, output, partial(make_whole, normal=experiment.model.normal)
    )
    filesystem.write_atomically(
        output / folder.INITIAL_PATIENTS, "\n".join(seen(experiment.model.checkpoint))
    )
    build = partial(ssd.SSD, experiment.model, data.shape, len(data.kinds))
    metrics = loop.fit(build, experiment, train, held_out, output, validate, write=ssd.write)
    script.summary(experiment, metrics, held_out, output)


if __name__ == "__main__":
    cli.run(main)

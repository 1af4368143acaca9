"""Train the SSD: whole mammograms to boxes, through the TensorFlow Object Detection API.

See tfmammo/detection/ssd.py.

tfmammo train ssd --config ssd --set data.name=inbreast data.root=DIR
"""

import os

# The API is written for Keras 2 and for protocol buffers of that time; both are chosen when
# TensorFlow is first imported.
os.environ |= {"TF_USE_LEGACY_KERAS": "1", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}

# isort: split
from functools import partial  # noqa: E402

from tfmammo import cli  # noqa: E402
from tfmammo.data.whole import make_whole  # noqa: E402
from tfmammo.detection import ssd  # noqa: E402
from tfmammo.detection.training import (  # noqa: E402
    check_unused_size,
    list_seen_patients,
    validate,
)
from tfmammo.training import script  # noqa: E402

NOT_FOR_WORKERS = "the Object Detection API's detectors are trained by one process"


def main() -> None:
    """Read the config, split the mammograms by patient, train, export."""
    with script.start(__doc__, ssd.SSDConfig, NOT_FOR_WORKERS) as command:
        data = command.experiment.data
        model = command.experiment.model
        check_unused_size(command.overrides, data)
        ssd.check(command.experiment)
        train, held_out = command.open_subsets(partial(make_whole, normal=model.normal))
        command.fit(
            partial(ssd.SSD, model, data.shape, len(data.kinds)),
            train,
            held_out,
            validate,
            monitor="recall",
            seen_patients=list_seen_patients(data, model.normal, model.checkpoint),
            write=ssd.write,
        )


if __name__ == "__main__":
    cli.run(main)

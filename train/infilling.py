"""Train the infilling GAN: tissue, mask and margin to a mass patch (see
tfmammo/models/infilling.py).

python train/infilling.py --config configs/infilling.yaml --set data.name=ddsm data.root=DIR
model.weights=FILE
"""

import numpy as np

from tfmammo import cli, datasets, export
from tfmammo import config as configuration
from tfmammo.data.patches import Patches
from tfmammo.layers import patch_seeds, uniform_noise
from tfmammo.metrics import synthesis
from tfmammo.models.infilling import Infilling, InfillingConfig, tri_label
from tfmammo.training import loop, script

MARGIN = 296  # of the region that is judged, whatever margin the generator sees


def main() -> None:
    """Read the config, split the data by patient, train, export."""
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, InfillingConfig)
    script.prepare(experiment.training)
    output = chosen.output or script.default_output(experiment)
    train, held_out = datasets.datasets(experiment.data, output)

    def judge(functions: loop.Functions, held_out: Patches) -> dict[str, float]:
        return validate(functions, held_out, experiment.model.margin)

    metrics = loop.fit(
        lambda: Infilling(experiment.model, experiment.data.size),
        experiment,
        train,
        held_out,
        output,
        judge,
    )
    script.summary(experiment, metrics, held_out, output)


def validate(functions: loop.Functions, held_out: Patches, margin: int | None) -> dict[str, float]:
    """How near G's images come to the real ones, the noise of every patch being the same each time.

    Returns:
        "ssim" and "l1" inside mask and margin, where G has to invent; then of the whole patch.
    """
    images = held_out.images
    masks = held_out.masks.astype(np.float32)
    noise = uniform_noise(patch_seeds(images, 0), images.shape[1])
    labels = tri_label(images, masks, noise, MARGIN).numpy()
    region = labels[..., 1:].max(axis=-1, keepdims=True)
    seen = labels if margin == MARGIN else tri_label(images, masks, noise, margin).numpy()
    synthetic = export.predict(functions["generator"], "tri_label", seen)["image"]
    scores = synthesis.per_image(images, synthetic, region)
    names = {"ssim": "ssim_mass", "l1": "l1_mass", "ssim_patch": "ssim", "l1_patch": "l1"}
    return {name: float(np.mean(scores[score])) for name, score in names.items()}


if __name__ == "__main__":
    cli.run(main)

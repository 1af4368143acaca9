"""Train the vanilla GAN: lesion patches from noise alone (see tfmammo/baselines/vanilla_gan.py).

python train/vanilla_gan.py --config configs/vanilla_gan.yaml --set data.name=inbreast data.root=DIR
"""

import numpy as np

from tfmammo import cli, datasets, export
from tfmammo import config as configuration
from tfmammo.baselines.vanilla_gan import VanillaGAN, VanillaGANConfig
from tfmammo.data.patches import Patches
from tfmammo.metrics.synthesis import sliced_wasserstein
from tfmammo.models.mask_gan import latent
from tfmammo.training import loop, script


def main() -> None:
    """Read the config, split the patches by patient, train, export."""
    chosen = cli.arguments(__doc__).parse_args()
    experiment = configuration.load(chosen.config, chosen.set, VanillaGANConfig)
    script.prepare(experiment.training)
    output = chosen.output or script.default_output(experiment)
    train, held_out = datasets.datasets(datasets.archive_split(experiment.data, output), output)

    def judge(functions: loop.Functions, held_out: Patches) -> dict[str, float]:
        """How near a set of generated patches comes to the held-out ones: minus their sliced
        Wasserstein distance.
        """
        made = export.predict(
            functions["generator"], "noise", latent(len(held_out), experiment.model.z)
        )["image"]
        return {"likeness": -sliced_wasserstein(held_out.images, np.clip(made, 0, 1))}

    metrics = loop.fit(
        lambda: VanillaGAN(experiment.model, experiment.data.size),
        experiment,
        train,
        held_out,
        output,
        judge,
    )
    script.summary(experiment, metrics, held_out, output)


if __name__ == "__main__":
    cli.run(main)

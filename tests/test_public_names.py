"""Names that users' scripts import, whether or not the package itself uses them."""

import importlib

import pytest

NAMES = {
    "tfmammo": "load predict predict_files open_archive make_patches insert_lesion augment",
    "tfmammo.config": "load",
    "tfmammo.models.can": "CAN CANConfig",
    "tfmammo.models.cgan": "CGAN CGANConfig",
    "tfmammo.models.shape": "ShapeCNN",
    "tfmammo.models.mask_gan": "MaskGAN",
    "tfmammo.models.infilling": "Infilling",
    "tfmammo.models.blending": "Blending seamless_loss background_loss",
    "tfmammo.models.contextual": "Contextual",
    "tfmammo.baselines.pix2pix": "Pix2Pix",
    "tfmammo.baselines.unet": "UNet",
    "tfmammo.baselines.fcn8s": "FCN8s",
    "tfmammo.baselines.segnet": "SegNet",
    "tfmammo.nn.layers": "SpectralNormalization SelfAttention",
    "tfmammo.metrics.segmentation": "accuracy dice jaccard mcc",
    "tfmammo.metrics.classification": "roc_auc delong_variance delong_test",
    "tfmammo.metrics.detection": "froc",
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names_stay(module):
    imported = importlib.import_module(module)
    missing = [name for name in NAMES[module].split() if not hasattr(imported, name)]
    assert not missing


@pytest.mark.parametrize("archive", ["inbreast", "cbis_ddsm", "cdd_cesm", "ddsm", "folder"])
def test_archives_have_a_reader(archive):
    assert callable(importlib.import_module(f"tfmammo.archives.{archive}").read)

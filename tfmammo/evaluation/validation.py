"""Validation of each paper's model: the metrics that choose its best checkpoint.

Every function takes the model's exported functions and the held-out patches, and returns means over
patches by name. The `likeness` of two sets of patches is their negative sliced Wasserstein
distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.data.patches import Patches
from tfmammo.metrics import synthesis
from tfmammo.metrics.blending import background_error, seam_strength
from tfmammo.metrics.classification import roc_auc, roc_by_fold
from tfmammo.metrics.synthesis import sliced_wasserstein
from tfmammo.models.blending import paste
from tfmammo.models.contextual import ContextualConfig
from tfmammo.models.mask_gan import (
    Plausibility,
    clean,
    distances,
    diversity,
    find_nearest,
    is_plausible,
)
from tfmammo.nn.layers import Margin, label_patches, sample_latent_noise
from tfmammo.nn.postprocessing import postprocess
from tfmammo.tracking.export import predict
from tfmammo.training.contract import Functions

INFILLING_MARGIN = 296  # px, of the region that is scored, whatever margin the generator sees
MASK_SAMPLES = 128  # masks that a validation of the mask GAN draws


def validate_infilling(
    functions: Functions, held_out: Patches, margin: Margin | None
) -> dict[str, float]:
    """Compare the infilling GAN's images with the real ones, with the same noise every time.

    Returns:
        "ssim" and "l1" inside mask and margin, where the generator has to invent; "ssim_patch" and
        "l1_patch" of the whole patch.
    """
    generated, region = _infill(functions["generator"], held_out, margin)
    return _score_infilling(held_out, generated, region)


def validate_flow(functions: Functions, held_out: Patches, margin: int | None) -> dict[str, float]:
    """Compare the rectified flow's images with the real ones, with the same noise every time.

    SSIM and L1 favour the mean of all lesions that fit, which is smooth. Likeness does not.

    Returns:
        "likeness" to the real patches, and what `validate_infilling` returns.
    """
    generated, region = _infill(functions["average"], held_out, margin)
    likeness = -sliced_wasserstein(held_out.images, generated)
    return {"likeness": likeness, **_score_infilling(held_out, generated, region)}


def _infill(
    function: Any, held_out: Patches, margin: Margin | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Infill held-out masses; return the images, and mask and margin, where they are scored."""
    inputs = _label(held_out, margin)
    scored = inputs if margin == INFILLING_MARGIN else _label(held_out, INFILLING_MARGIN)
    return predict(function, {"tri_label": inputs})["image"], _find_region(scored)


def find_infilled_region(held_out: Patches) -> NDArray[np.float32]:
    """Find mask and margin of masses, where infilled ones are scored: 0 or 1."""
    return _find_region(_label(held_out, INFILLING_MARGIN))


def _find_region(label: NDArray[np.float32]) -> NDArray[np.float32]:
    return label[..., 1:].max(axis=-1, keepdims=True)


def _label(held_out: Patches, margin: Margin | None) -> NDArray[np.float32]:
    return label_patches(held_out.images, held_out.masks.astype(np.float32), 0, margin).numpy()


def _score_infilling(
    held_out: Patches, generated: NDArray[np.float32], region: NDArray[np.float32]
) -> dict[str, float]:
    scores = synthesis.per_image(held_out.images, generated, region)
    names = {"ssim": "ssim_mass", "l1": "l1_mass", "ssim_patch": "ssim", "l1_patch": "l1"}
    return {name: float(np.mean(scores[score])) for name, score in names.items()}


def validate_blending(functions: Functions, held_out: Patches, tissue: Patches) -> dict[str, float]:
    """Blend held-out lesions into held-out tissue: the same pairs every time, each lesion in place.

    Returns:
        "likeness" to the real lesions' patches; "likeness_of_pasted", that of patches with the
        lesion pasted in. "seam": see metrics.blending, 1 is no seam. "background": mean absolute
        change outside the mask.
    """
    masks = held_out.masks.astype(np.float32)
    targets = tissue.images[np.arange(len(held_out)) % len(tissue)]
    channels = paste(targets, held_out.images, masks).numpy()
    blended = predict(functions["generator"], {"pasted": channels})["image"]
    errors = background_error(blended, targets, held_out.masks)
    return {
        "likeness": -sliced_wasserstein(held_out.images, blended),
        "likeness_of_pasted": -sliced_wasserstein(held_out.images, channels[..., 1:2]),
        "seam": float(np.nanmean(seam_strength(blended, held_out.masks))),
        "background": float(np.mean(errors["l1_background"])),
    }


def validate_vanilla_gan(functions: Functions, held_out: Patches, z: int) -> dict[str, float]:
    """Compare as many generated patches, of noise of length z, with the held-out ones."""
    noise = sample_latent_noise(len(held_out), z)
    generated = predict(functions["generator"], {"noise": noise})["image"]
    return {"likeness": -sliced_wasserstein(held_out.images, np.clip(generated, 0, 1))}


def validate_shapes(functions: Functions, held_out: Patches) -> dict[str, float]:
    """Classify held-out masks by shape.

    Returns:
        "accuracy"; "auc", the mean area under the ROC curves of each shape against the others, left
        out if all masks have one shape.
    """
    masks = held_out.masks.astype(np.float32)
    probabilities = predict(functions["classifier"], {"mask": masks}, batch=64)["shapes"]
    labels = held_out.labels
    classes = labels[:, np.newaxis] == np.arange(probabilities.shape[1])
    *_, areas = roc_by_fold(classes, probabilities, np.zeros(len(labels)))
    accuracy = float(np.mean(probabilities.argmax(axis=1) == labels))
    if not len(areas):
        return {"accuracy": accuracy}
    return {"accuracy": accuracy, "auc": float(np.nanmean(areas))}


def validate_mask_gan(
    functions: Functions,
    held_out: Patches,
    references: NDArray[np.uint8],
    limits: Plausibility,
) -> dict[str, float]:
    """Score the quality, variety and novelty of cleaned masks of fixed noise.

    Returns:
        "coverage": the mean Dice of a held-out mask with the generated one most like it. Noise,
        copies of one mask and masks of another kind all lower it. "plausible": the share that
        `is_plausible` accepts. "diversity": of generated masks, "diversity_real" of held-out ones.
        "novelty": the mean distance to the nearest training mask, "novelty_smallest" the least,
        "novelty_real" that of held-out masks.
    """
    generator = functions["generator"]
    noise = sample_latent_noise(MASK_SAMPLES, generator.input_signature[0].shape[1])
    masks = clean(predict(generator, {"noise": noise})["mask"])
    novelty = find_nearest(masks, references)[0]
    return {
        "coverage": float(1 - distances(held_out.masks, masks).min(axis=1).mean()),
        "plausible": float(is_plausible(masks, limits).mean()),
        "diversity": diversity(masks),
        "diversity_real": diversity(held_out.masks),
        "novelty": float(novelty.mean()),
        "novelty_smallest": float(novelty.min()),
        "novelty_real": float(find_nearest(held_out.masks, references)[0].mean()),
    }


def validate_contextual(
    functions: Functions,
    held_out: Patches,
    real: Patches,
    model: ContextualConfig,
    judge: Any = None,
) -> dict[str, float]:
    """Compare the generated patches with real ones as a set, before and after post-processing.

    Args:
        functions: "average".
        held_out: The generator's inputs.
        real: What the generator is to make.
        model: Its config.
        judge: The exported function of a classifier of real patches; None for none.

    Returns:
        "likeness" to the real patches; "likeness_of_inputs", that of the inputs. "discarded": the
        share of generated patches that post-processing refuses. With a judge also "judged": the
        probability that it gives a patch that post-processing keeps a higher score than an input of
        those patches, for removal a lower one; NaN where none is kept.
    """
    images = held_out.images
    average = functions["average"]
    noise = sample_latent_noise(len(images), average.input_signature[1].shape[1])
    generated = predict(average, {"image": images, "noise": noise})
    is_removal = model.target == "removal"
    refined = postprocess(images, generated["lesion"], model.postprocess, removal=is_removal)
    metrics = {
        "likeness": -sliced_wasserstein(real.images, generated["image"]),
        "likeness_of_inputs": -sliced_wasserstein(real.images, images),
        "discarded": float(1 - refined.kept.mean()),
    }
    if judge is not None:
        # inputs whose edits are refused differ by themselves, in brightness for one
        area = _judge(judge, images[refined.kept], refined.image[refined.kept])
        metrics["judged"] = 1 - area if is_removal else area
    return metrics


def _judge(judge: Any, inputs: NDArray[np.float32], edited: NDArray[np.float32]) -> float:
    """Return the probability that an edited patch scores higher than an input; NaN without any."""
    if not len(edited):
        return np.nan
    scores = [predict(judge, {"image": part})["probability"] for part in (inputs, edited)]
    labels = np.repeat([0, 1], [len(inputs), len(edited)])
    return roc_auc(labels, np.concatenate(scores))

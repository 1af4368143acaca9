"""Attacks on a generator: each tries to find out what it was trained on.

    loss              the generator comes nearer to the real patch of a training mask (L1)
    discriminator     the discriminator finds training patches more real (mean logit)
    nearest, SPACE    training patches are nearer to the patches generated for other patients
    extraction        a training mask alone reproduces its patch
    patient           a patch generated from one mask of a patient is nearest to another real patch
                      of that patient

Each attack gives an AUC of training against unseen patches; 0.5 means no memory. Both sides have
equally many patches, of different patients, drawn at random. `nearest` needs no knowledge of masks.

Distances are of pixels, in all eight orientations of the square. A generator that is given tissue
returns that tissue, which is not memory: then only pixels of the mass count. Its extraction uses
masks alone, with flat grey in place of the tissue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from tfmammo.config import Statistics
from tfmammo.data.patches import Patches
from tfmammo.errors import DataError, ExportError
from tfmammo.evaluation.networks import Network
from tfmammo.evaluation.perceptual import PerceptualScorer, load_published
from tfmammo.evaluation.realism import make_tri_labels, read_margin
from tfmammo.metrics import perceptual
from tfmammo.metrics.clustered_auc import estimate_auc, estimate_rate, has_few_patients
from tfmammo.metrics.significance import Estimate
from tfmammo.nn.layers import patch_seeds, tri_label, uniform_noise
from tfmammo.tracking import export

Array = NDArray[np.float64]
Images = NDArray[np.float32]
GREY = 0.5  # of tissue that is not given
LEAST = 6  # patches of a side


class AuditConfig(Statistics):
    """A generator, patches that it was and was not trained on, and the rule of the verdict."""

    model: str
    """A run, an export, or models:/NAME/VERSION, with a function from mask or tri_label to image.
    """
    data: dict[str, Any] = {}
    """Keys of DataConfig that name the archive of the training run, with its held-out patients; the
    model's card gives the others.
    """
    count: int = Field(default=200, ge=12)
    """Largest number of training patches, and of unseen ones."""
    limit: float = Field(default=0.6, gt=0.5, lt=1)
    """An attack that separates training from unseen patches with a higher AUC is a leak."""
    copy_below: PositiveFloat = perceptual.COPY
    """A patch is a copy if its distance to a training patch is below this part of the median
    distance of real unseen patches.
    """
    networks: bool = True
    """Also compare LPIPS and Inception features, if the folder TFMAMMO_WEIGHTS has both."""
    write_card: bool = True
    """Write the verdict into the export's card, or into the tags of a registered version."""
    rows: PositiveInt = 8
    """Rows of the grid of the nearest patches."""
    tracking_uri: str | None = None
    """MLflow's store of models:/ URIs. If set, the audit is logged there as a run."""
    samples: PositiveInt = 1000
    """Draws of the bootstrap over patients."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Simultaneous confidence level of the verdict's intervals."""


@dataclass(frozen=True, eq=False)
class Sides:
    """Training and unseen patches, and what the generator makes of their conditions."""

    patches: Patches  # n real ones
    is_member: NDArray[np.bool_]  # bool [n], training patches
    made: Images  # float32 [n, s, s, 1], from each one's mask, or mask and tissue
    from_masks: Images  # the same from the mask alone
    weights: Images  # float32 [n, s, s, 1], pixels that count

    @property
    def patients(self) -> NDArray[np.str_]:
        """The patient of each patch."""
        return self.patches.patient_ids


@dataclass(frozen=True)
class Attack:
    """One attack's success."""

    name: str
    success: Estimate  # AUC
    rate: Estimate | None = None  # true positive rate at 1 % false positives, of a score
    details: str = ""


def draw_sides(network: Network, patches: Patches, config: AuditConfig) -> Sides:
    """Draw equally many training and unseen patches, and run the generator."""
    unseen = network.find_unseen(patches.patient_ids)
    count = min(config.count, int((~unseen).sum()), int(unseen.sum()))
    if count < LEAST:
        raise DataError(
            f"{network.uri}: the archive has {int((~unseen).sum())} training patches and "
            f"{int(unseen.sum())} unseen ones; an audit needs {LEAST} of each"
        )
    random = np.random.default_rng(config.seed)
    rows = [_draw_rows(patches.patient_ids, part, count, random) for part in (~unseen, unseen)]
    chosen = patches.take(np.concatenate(rows))
    is_member = np.arange(2 * count) < count
    masks = chosen.masks.astype(np.float32)
    if network.source == "mask":
        made = network.run("mask", "image", masks)
        return Sides(chosen, is_member, made, made, np.ones_like(masks))
    made = network.run("tri_label", "image", make_tri_labels(chosen, network.card), masks.shape[1:])
    noise = uniform_noise(patch_seeds(chosen.images, 0), chosen.images.shape[1])
    flat = tri_label(
        np.full_like(chosen.images, GREY), masks, noise, read_margin(network.card)
    ).numpy()
    from_masks = network.run("tri_label", "image", flat, masks.shape[1:])
    return Sides(chosen, is_member, made, from_masks, masks)


def _draw_rows(
    patients: NDArray[np.str_], allowed: NDArray[np.bool_], count: int, random: np.random.Generator
) -> NDArray[np.intp]:
    """Draw patches patient by patient, so that most patients have all of theirs."""
    names, numbers = np.unique(patients, return_inverse=True)
    turns = random.permutation(len(names))[numbers]  # each patient's
    rows = np.flatnonzero(allowed)
    return np.sort(rows[np.argsort(turns[rows], kind="stable")][:count])


def run_attacks(network: Network, sides: Sides, config: AuditConfig, level: float) -> list[Attack]:
    """Run all attacks that the export allows; `level` is that of each attack's interval."""
    difference = np.abs(sides.made - sides.patches.images, dtype=np.float64) * sides.weights
    total = sides.weights.sum(axis=(1, 2, 3), dtype=np.float64)
    loss = difference.sum(axis=(1, 2, 3)) / np.maximum(total, 1)
    attacks = [_score_members("loss", loss, sides, config, level, sign=-1)]
    logits = find_logits(network, sides)
    if logits is not None:
        attacks.append(_score_members("discriminator", logits, sides, config, level))
    scorer = load_published() if config.networks else None
    attacks += [
        _score_members(f"nearest, {space}", distances, sides, config, level, sign=-1)
        for space, distances in _measure_nearest(sides, scorer).items()
    ]
    attacks.append(_extract(sides, config, level))
    if (attack := _identify(sides, scorer, level)) is not None:
        attacks.append(attack)
    return attacks


def count_attacks(config: AuditConfig) -> int:
    """Return the largest number of attacks, over which the level is divided."""
    return 7 if config.networks else 5


def find_logits(network: Network, sides: Sides) -> Array | None:
    """Compute the discriminator's mean logit of each real patch; None without discriminator."""
    try:
        name = export.find_function(network.folder, {network.source, "image"}, {"logits"})
    except ExportError:
        return None
    call = export.load(network.folder, name)
    masks = sides.patches.masks.astype(np.float32)
    conditions = masks if network.source == "mask" else make_tri_labels(sides.patches, network.card)
    inputs = {network.source: conditions, "image": sides.patches.images}
    logits = export.predict(call, inputs)["logits"]
    return logits.reshape(len(logits), -1).mean(axis=1).astype(np.float64)


def _score_members(
    name: str, scores: Array, sides: Sides, config: AuditConfig, level: float, sign: int = 1
) -> Attack:
    """Score membership; with a sign of -1 members have lower scores."""
    arguments = sides.is_member, sign * scores, sides.patients
    rate = estimate_rate(*arguments, level, config.samples, config.seed)
    means = [float(scores[part].mean()) for part in (sides.is_member, ~sides.is_member)]
    details = f"mean {means[0]:.4g} of training patches, {means[1]:.4g} of unseen ones"
    return Attack(name, estimate_auc(*arguments, level), rate, details)


def _measure_nearest(sides: Sides, scorer: PerceptualScorer | None) -> dict[str, Array]:
    """Measure each real patch's distance to the nearest one made for another patient, by space.

    Real patches are the units. Generated ones are not independent: if they are all alike, all have
    the same nearest patch.
    """
    real, made = sides.patches.images, sides.made
    others = sides.patients[:, None] != sides.patients
    distances = {"pixels": perceptual.find_nearest_turned(real, made, others, sides.weights)[0]}
    if scorer and sides.weights.min() == 1:  # shown tissue would decide the others
        lpips = scorer.lpips.matrix(real, made)
        features = scorer.inception.features
        nearest, _ = perceptual.find_nearest(features(real), features(made), others)
        distances["LPIPS"] = np.where(others, lpips, np.inf).min(axis=1)
        distances["Inception"] = nearest
    return distances


def _extract(sides: Sides, config: AuditConfig, level: float) -> Attack:
    """Try to reproduce patches from their masks; unseen ones are the control."""
    real = sides.patches.images
    members = np.flatnonzero(sides.is_member)
    others = np.flatnonzero(~sides.is_member)
    allowed = np.broadcast_to(sides.is_member, (len(others), len(real)))
    usual, _ = perceptual.find_nearest_turned(real[others], real, allowed, sides.weights[others])
    limit = config.copy_below * float(np.median(usual))
    own = np.eye(len(real), dtype=np.bool_)
    distance, _ = perceptual.find_nearest_turned(sides.from_masks, real, own, sides.weights)
    is_copy = distance < limit
    success = estimate_auc(sides.is_member, is_copy.astype(np.float64), sides.patients, level)
    shares = [100 * float(is_copy[part].mean()) for part in (members, others)]
    details = f"{shares[0]:.1f} % of training patches reproduced, {shares[1]:.1f} % of unseen ones"
    return Attack("extraction", success, None, details)


def _identify(sides: Sides, scorer: PerceptualScorer | None, level: float) -> Attack | None:
    """Search the patient of each mask among real patches, without the mask's own.

    None if too few patients have two patches.
    """
    patients = sides.patients
    same = patients[:, None] == patients
    np.fill_diagonal(same, False)
    queries = np.flatnonzero(same.any(axis=1))
    if has_few_patients(sides.is_member[queries], patients[queries]):
        return None
    # Each side has its own gallery, so that both are equally hard.
    allowed = (sides.is_member[queries][:, None] == sides.is_member) & ~np.eye(
        len(patients), dtype=np.bool_
    )[queries]
    real = sides.patches.images
    if scorer is not None and sides.weights.min() == 1:
        made, pool = (scorer.inception.features(images) for images in (sides.made, real))
        _, index = perceptual.find_nearest(made[queries], pool, allowed)
    else:
        masks = sides.weights[queries]
        _, index = perceptual.find_nearest_turned(sides.made[queries], real, allowed, masks)
    hits = patients[index] == patients[queries]
    is_member = sides.is_member[queries]
    success = estimate_auc(is_member, hits.astype(np.float64), patients[queries], level)
    shares = [100 * float(hits[is_member == side].mean()) for side in (True, False)]
    details = f"{shares[0]:.1f} % of training patients found, {shares[1]:.1f} % of unseen ones"
    return Attack("patient", success, None, details)

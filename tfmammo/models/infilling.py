"""Infilling: mass patches from context, mask and margin (Shen et al., stages 2 and 3).

The tri-label x has three channels: the tissue patch, its lesion region replaced by uniform noise;
the mask; the margin, which is the mask scaled up less the mask. A generator G maps it to a mass
image, a discriminator D judges (x, image) pairs:

    min_G max_D  E[log D(x, R)] + E[log(1 - D(x, G(x)))]           Eq. (3)
    L_fm(G) = sum_{l=0..5} lambda_l ||phi_l(R) - phi_l(G(x))||_1   Eq. (4)
    L = L_GAN + lambda L_fm                                        Eq. (5)

R is the real image, phi_0 the image itself, phi_1 to phi_5 are layers of VGG-19.

Inside, images are in [-1, 1]; at every public border, and in L_fm, they are in [0, 1].

Deviations and what the paper leaves open:
- The margin: section 4.1 makes it by scaling, which is the default: the mask is resized to 296 x
  296. Here it is resized about the patch's centre by nearest neighbours and cropped back to 256 x
  256; then the mask is subtracted. So the margin has no constant width. Around a centred disc of
  radius 60 px it is 9 px, of radius 15 px at 64 px 2 px. That of a mask off the centre is wider on
  the side away from the centre and narrow or missing on the other, and in bays of the outline.
  Patches of another size scale by the same factor, to whole px on every side: at 64 px 276, 296 and
  316 are factors of 1.063, 1.156 and 1.25, not 1.078, 1.156 and 1.234. Section 3.1 speaks of a
  morphological operation of no stated width: `margin: {dilation: 20}` dilates the mask by a disc of
  20 px of 256, as much as 296 moves the patch's border. `margin: null` omits the channel (the
  ablation).
- Adam is printed with beta_1 = 0.9 and beta_2 = 0.5, most likely swapped: (0.5, 0.9) here.
- VGG-19's layers: `feature_layers: blocks` are conv1_2, 2_2, 3_2, 4_2 and 5_2 after their ReLUs, as
  in Chen and Koltun's refinement network. `first` are the first five convolutions, which is what
  the text says word for word. lambda_l is 1 / number of elements.
- VGG-19 sees [0, 255] or standardised intensities, depending on the file of weights. Its feature
  maps are divided by that factor. All six terms are then on the scale of images in [0, 1], and
  lambda means the same with either. The card names the file's weights by their SHA-256.
- The crn generator: "2 x 2 x 3" of its first module and "256 x 256 x 3" of its last count the
  tri-label's channels, which each module takes in. A module's own width is open (Chen and Koltun:
  1024 below 128 px, 512 at 128 and 256), and so is its normalisation (theirs: of the layer, before
  each ReLU; `none` omits it). A 1 x 1 convolution makes the image of the last module. ReLU is as
  printed, where theirs leaks. It upsamples bilinearly and starts from He's random weights.
- The unet generator: Pix2Pix's U-Net, dropout 0.5 in its three innermost decoder blocks, off at
  inference. Both generators end in tanh. The unet and D start from N(0, 0.02).
- Intensities are those of the mammogram (`data.window`); the paper states none.
- `data.padding` is the paper's 100 px "unscaled", about 5 mm of DDSM's films. In a scaled copy of
  an archive, or on phantoms (25 px), 100 px are more tissue.
- log(1 - D) hardly has a gradient while D wins: `adversarial: non_saturating` (default) minimises
  -log D. "The average value" of D's 30 x 30 responses is that of probabilities; `average: losses`
  averages their logarithms.
- Malignant masses (`data.pathologies`), as in the paper. Where an archive states no pathology, or
  has few malignant masses, `data.pathologies: null` takes all.
- Augmentation: each draw is transformed by a random one of the eight symmetries of the square
  (`data.augment`). The paper rotates, mirrors and scales its 765 images to 3,825 beforehand;
  `data.added.copies` adds such copies of training mammograms, scaled ones too.
- Normalisation of the U-Net and of D: statistics of each sample, in training and at inference.
  Pix2Pix's layers have those of the batch, here of two. Epsilon is Keras's 1e-3, also in the crn's
  layer normalisation, whose code has 1e-12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from tfmammo.config import FIXED, Frozen, Width
from tfmammo.errors import name_key
from tfmammo.nn.convolutions import Convolution
from tfmammo.nn.layers import FULL, Dilation, label_patches
from tfmammo.nn.losses import Adversarial, Average, deceive, l1, log_fake, log_real
from tfmammo.nn.networks import (
    PIX2PIX_FILTERS,
    Network,
    PatchDiscriminator,
    Trainable,
    UNet256,
    export_function,
    halve,
)
from tfmammo.nn.normalization import GroupNormalization
from tfmammo.nn.optimization import build_adam, count_batches, minimize_each
from tfmammo.nn.pretrained import vgg19
from tfmammo.nn.published import identify

CRN_WIDTHS = (1024, 1024, 1024, 1024, 1024, 1024, 512, 512)
FEATURE_LAYERS = {
    "blocks": ("block1_conv2", "block2_conv2", "block3_conv2", "block4_conv2", "block5_conv2"),
    "first": ("block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "block3_conv1"),
}


class InfillingConfig(Frozen):
    """The paper's values; see *Deviations* in the module for those it leaves open."""

    generator: Annotated[Literal["unet", "crn"], FIXED] = "unet"
    """Network of G."""
    margin: Annotated[Annotated[int, Field(gt=FULL)] | Dilation | None, FIXED] = 296
    """Size, px, to which a mask of 256 px is scaled for the third channel; 276, 296 and 316 are
    studied. {dilation: 20}: the mask is widened by 20 px of 256 instead. null: two channels.
    """
    lambda_fm: NonNegativeFloat = 100.0
    """Weight of L_fm, the paper's lambda."""
    feature_layers: Literal["blocks", "first"] = "blocks"
    """Layers of VGG-19 in L_fm."""
    weights: str = "imagenet"
    """VGG-19's weights: "imagenet" (downloaded by Keras), a file's path, or "none", random ones."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate, of both networks."""
    beta_1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay of the first moment."""
    beta_2: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the second moment."""
    adversarial: Adversarial = "non_saturating"
    """What G minimises: -log D, or log(1 - D) as printed."""
    average: Average = "responses"
    """How D's responses to one pair become one, see `tfmammo.nn.losses`."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share dropped in the three innermost decoder blocks of the unet."""
    filters: tuple[Width, ...] = Field(default=PIX2PIX_FILTERS, min_length=1)
    """Filters of the unet, one for each halving of the patch."""
    widths: tuple[Width, ...] = Field(default=CRN_WIDTHS, min_length=1)
    """Channels of the crn's modules; each module's map is twice the size of the one before."""
    normalization: Annotated[Literal["layer", "none"], FIXED] = "layer"
    """Normalisation in the crn."""
    discriminator_strided: Annotated[PositiveInt, FIXED] = 3
    """Stride-2 convolutions of D; 3 gives 30 x 30 responses."""
    discriminator_filters: Width = 64
    """Filters of D's first convolution."""

    @property
    def channels(self) -> int:
        """Channels of the tri-label."""
        return 2 if self.margin is None else 3


def feature_matching(real: Sequence[tf.Tensor], fake: Sequence[tf.Tensor]) -> tf.Tensor:
    """Compute L_fm, Eq. (4): the sum over layers of mean |phi_l(R) - phi_l(G(x))|, float32.

    The mean is ||.||_1 times lambda_l = 1 / number of elements.

    Args:
        real: phi_l(R), floating [n, rows, cols, channels] each, the image first.
        fake: phi_l(G(x)), of the same shapes.
    """
    return tf.add_n([l1(r, f) for r, f in zip(real, fake, strict=True)])


class CRN(Network):
    """A cascaded refinement network: modules of doubling resolution.

    Module i downsamples the label by area to the module's size and concatenates it with the
    upsampled output of module i - 1. Two convolutions 3 x 3 follow, each with normalisation (if
    any) and ReLU. A convolution 1 x 1 follows the last module.

    With eight modules and 256 px the first map is 2 x 2.

    floating [batch, size, size, channels] -> float32 [batch, size, size, 1] in [-1, 1]

    Source:
        Section 3.3, Fig. 3 (b); Chen and Koltun, Photographic image synthesis with cascaded
        refinement networks (2017). 115,842,561 trainable parameters for three channels.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: Sequence[int] = CRN_WIDTHS,
        size: int = 256,
        normalization: str = "layer",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        halve("widths", size, len(widths) - 1)
        # the label's downsampling for each module
        self.factors = [2**i for i in reversed(range(len(widths)))]
        self.convolutions = [[_refinement(width) for _ in range(2)] for width in widths]
        # One group is the whole map: the layer normalisation of Chen and Koltun's code, with a gain
        # and offset for each channel.
        has_norms = normalization == "layer"
        self.norms = [
            [GroupNormalization(1) if has_norms else None for _ in range(2)] for _ in widths
        ]
        self.head = Convolution(1, 1)
        self.to_float32 = keras.layers.Activation("tanh", dtype="float32")
        self(keras.Input((size, size, channels), batch_size=1))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the class."""
        return self.to_float32(self.head(self.modules(x)[-1]))

    def modules(self, label: tf.Tensor) -> list[tf.Tensor]:
        """Compute the modules' outputs, from the smallest to the largest."""
        label = tf.cast(label, tf.float32)  # a CPU adds up in bfloat16 what it pools
        outputs: list[tf.Tensor] = []
        for factor, convolutions, norms in zip(
            self.factors, self.convolutions, self.norms, strict=True
        ):
            x = tf.nn.avg_pool2d(label, factor, factor, "VALID")  # F_i
            x = tf.cast(x, self.compute_dtype)
            if outputs:
                x = tf.concat([x, _upsample(outputs[-1])], axis=-1)
            for convolution, norm in zip(convolutions, norms, strict=True):
                x = convolution(x)
                x = tf.nn.relu(norm(x) if norm else x)
            outputs.append(x)
        return outputs


class Infilling(Trainable):
    """Generator and discriminator with their optimizers, and the frozen VGG-19.

    Source:
        Section 3.3. For three channels G has 54,409,857 (unet) or 115,842,561 (crn) and D 2,766,657
        trainable parameters.
    """

    def __init__(self, config: InfillingConfig | None = None, size: int = 256) -> None:
        super().__init__(name="infilling")
        self.config = config = config or InfillingConfig()
        self.size = size
        if config.generator == "unet":
            self.generator = UNet256(
                config.channels,
                filters=config.filters,
                dropout=config.dropout,
                size=size,
                name="generator",
            )
        else:
            self.generator = CRN(
                config.channels, config.widths, size, config.normalization, "generator"
            )
        strided = config.discriminator_strided
        filters = config.discriminator_filters
        self.discriminator = PatchDiscriminator(
            config.channels + 1, strided, filters, size, "discriminator"
        )
        # in no checkpoint and no export
        with name_key("model.weights"):
            self.feature_extractor = vgg19(config.weights, FEATURE_LAYERS[config.feature_layers])
            self.pretrained = {"feature_extractor": identify("vgg19", config.weights)}
        self.grey_scale = _grey_scale(self.feature_extractor)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = build_adam(
            self.networks, config.learning_rate, config.beta_1, config.beta_2
        )

    def label(self, batch: dict[str, tf.Tensor], step: tf.Tensor | int = 0) -> tf.Tensor:
        """Make the tri-label of a batch; its noise follows from step and patches."""
        return label_patches(batch["image"], batch["mask"], step, self.config.margin)

    def discriminate(self, label: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """Compute D(x, R), x and R in [-1, 1]: float32 logits, one for each patch of the pair."""
        return self.discriminator(tf.concat([label, image], axis=-1))

    def features(self, image: tf.Tensor) -> list[tf.Tensor]:
        """Compute phi_0 to phi_5, float32, of images in [0, 1]."""
        return [image, *(feature / self.grey_scale for feature in self.feature_extractor(image))]

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Update G and D once, both from the same forward pass, on "image" and "mask".

        The scalars are each network's loss, L_fm, the L1 of the images, and D's mean probability
        for each pair.
        """
        config = self.config
        image = batch["image"]
        label = self.label(batch, count_batches(self.optimizers["generator"])) * 2 - 1  # x
        real_image = image * 2 - 1  # R
        real_features = self.features(image)  # phi_l(R)
        with tf.GradientTape(persistent=True) as tape:
            fake_image = self.generator(label, training=True)  # G(x)
            real = self.discriminate(label, real_image)  # D(x, R)
            fake = self.discriminate(label, fake_image)  # D(x, G(x))
            fake_features = self.features(fake_image * 0.5 + 0.5)  # phi_l(G(x))
            matching = feature_matching(real_features, fake_features)  # L_fm
            adversarial = deceive(fake, config.adversarial, config.average)
            losses = {
                "generator": adversarial + config.lambda_fm * matching,
                "discriminator": -(log_real(real, config.average) + log_fake(fake, config.average)),
            }
        return {
            **minimize_each(losses, self, tape),
            "feature_matching": matching,
            "image_l1": l1(image, fake_image * 0.5 + 0.5),
            "p_real": tf.reduce_mean(tf.sigmoid(real)),
            "p_fake": tf.reduce_mean(tf.sigmoid(fake)),
        }

    def infill(self, label: tf.Tensor) -> tf.Tensor:
        """Generate images in [0, 1] from labels, see `layers.tri_label`."""
        return self.generator(label * 2 - 1) * 0.5 + 0.5

    def sample(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Draw panels for the image grid: the tri-label's channels, G's image and the real one.

        The noise is always the same.
        """
        label = self.label(batch)
        split = tf.split(label, self.config.channels, axis=-1)
        channels = dict(zip(("tissue", "mask", "margin"), split, strict=False))
        return {**channels, "synthetic": self.infill(label), "real": batch["image"]}

    def functions(self) -> dict[str, Callable]:
        """Return what is exported, one function for each network."""
        label = (self.size, self.size, self.config.channels)
        return {
            "generator": export_function(
                lambda tri_label: {"image": self.infill(tri_label)}, tri_label=label
            ),
            "discriminator": export_function(
                lambda tri_label, image: {
                    "logits": self.discriminate(tri_label * 2 - 1, image * 2 - 1)
                },
                tri_label=label,
                image=(self.size, self.size, 1),
            ),
        }


def _refinement(width: int) -> keras.layers.Layer:
    return Convolution(width, 3, padding="same", kernel_initializer="he_normal")


def _upsample(x: tf.Tensor) -> tf.Tensor:
    wide = tf.image.resize(tf.cast(x, tf.float32), [2 * x.shape[1], 2 * x.shape[2]])
    return tf.cast(wide, x.dtype)


def _grey_scale(feature_extractor: keras.Model) -> float:
    """Return by how much a network stretches intensities before its first convolution."""
    layers = feature_extractor.layers
    rescaling = next(layer for layer in layers if isinstance(layer, keras.layers.Rescaling))
    return float(np.mean(rescaling.scale))

"""Layers, and functions of patches, labels and noise, that models use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import PositiveInt, TypeAdapter

from tfmammo.config import Frozen
from tfmammo.errors import ConfigError

TINY = 1e-12  # instead of a length of 0, to divide by
LEVELS = 2**23  # of a random number: as many as float32 has in [1, 2)
FULL = 256  # px of a patch that the margin of a tri-label refers to


class Dilation(Frozen):
    """A margin of the same width on all sides."""

    dilation: PositiveInt
    """Its width, px of a patch of 256 px."""


# Of a tri-label: px that a mask of 256 px is scaled to, or how far it is dilated.
Margin = int | Dilation


@keras.saving.register_keras_serializable("tfmammo")
class SpectralNormalization(keras.layers.Wrapper):
    """A layer whose kernel is W / sigma(W) in every call, sigma being W's largest singular value.

        sigma = v . W u,    v = W u / |W u|,    |u| = 1

    The gradient flows through W and through sigma, u and v being constants, so that <W, dL/dW> = 0.
    W is the kernel as a matrix [everything else, outputs]. A call changes neither W nor u.

    `power_iteration` moves u once towards W's right singular vector. A train step calls it once,
    however often it calls the layer, so that all calls of a step use one kernel. Within
    `cached_kernel` they share the kernel's memory and its gradient. All of this is float32; kernel
    and bias are then cast to the input's dtype, which no policy changes.

    The wrapped layer has a `kernel` whose last axis counts its outputs, as Dense and Conv2D have.

    Examples:
        >>> layer = SpectralNormalization(keras.layers.Dense(3, use_bias=False))
        >>> layer(np.ones((2, 5), np.float32)).shape
        TensorShape([2, 3])

    Source:
        Miyato et al., Spectral normalization for generative adversarial networks (2018), algorithm
        1. The layer of keras.layers overwrites W by W / sigma at each training call, so that no
        gradient passes sigma.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: object) -> None:
        super().__init__(layer, **{"dtype": "float32", "autocast": False, **kwargs})
        # replicas are traced in threads of their own, each with its own kernel
        self._cache = threading.local()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the layer's weights, and u, float32 [outputs], whose direction alone counts."""
        super().build(input_shape)
        self.u = self.add_weight(
            shape=(self.layer.kernel.shape[-1],),
            initializer=keras.initializers.RandomNormal(stddev=1.0),
            trainable=False,
            name="u",
            autocast=False,
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """See the class."""
        kernel = getattr(self._cache, "kernel", None)
        values = [(self.layer.kernel, self.normalized() if kernel is None else kernel)]
        if getattr(self.layer, "bias", None) is not None:
            values.append((self.layer.bias, tf.convert_to_tensor(self.layer.bias)))
        # Keras's way to call a layer with other values than its own. add_update, unlike the
        # scope's constructor, keeps their dtype.
        scope = keras.StatelessScope()
        for variable, value in values:
            scope.add_update((variable, tf.cast(value, x.dtype)))
        with scope:
            return self.layer.call(x)

    def normalized(self) -> tf.Tensor:
        """Compute the kernel of a call, W / sigma, float32; 0 where W is 0."""
        matrix = self._matrix()
        image = tf.linalg.matvec(matrix, _unit(tf.convert_to_tensor(self.u)))
        sigma = tf.reduce_sum(tf.stop_gradient(_unit(image)) * image)
        return tf.reshape(matrix / tf.maximum(sigma, TINY), self.layer.kernel.shape)

    @contextmanager
    def cached_kernel(self) -> Iterator[None]:
        """Within, all calls of this thread use one tensor W / sigma, computed on entry.

        The tapes that record then see its gradient.
        """
        self._cache.kernel = self.normalized()
        try:
            yield
        finally:
            self._cache.kernel = None

    def power_iteration(self) -> None:
        """Move u once: u <- W' v / |W' v|, v = W u / |W u|."""
        matrix = self._matrix()
        v = _unit(tf.linalg.matvec(matrix, _unit(tf.convert_to_tensor(self.u))))
        self.u.assign(_unit(tf.linalg.matvec(matrix, v, transpose_a=True)))

    def _matrix(self) -> tf.Tensor:
        kernel = self.layer.kernel
        return tf.reshape(tf.convert_to_tensor(kernel), [-1, kernel.shape[-1]])


@keras.saving.register_keras_serializable("tfmammo")
class SelfAttention(keras.layers.Layer):
    """Every position of a map attends to all others.

        y_i = x_i + gamma * v(sum_j b_ij h(x_j)),    b_i = softmax_j(f(x_j) . g(x_i))

    f, g and h are 1x1 convolutions to an eighth of the channels, v one back to all of them, none
    with a bias. gamma is learned and starts at 0, so that a network first learns without it. All of
    it is float32, whatever the input is: a softmax over a thousand positions underflows in float16.
    With `spectral` the four kernels are normalised, see `SpectralNormalization`.

    Examples:
        >>> x = np.ones((1, 8, 8, 16), np.float32)
        >>> bool(np.all(SelfAttention()(x) == x))  # gamma starts at 0
        True

    Source:
        Zhang et al., Self-attention generative adversarial networks (2018), section 3.
    """

    def __init__(self, spectral: bool = False, **kwargs: object) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.spectral = spectral

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the four convolutions and gamma, a float32 scalar."""
        channels = int(input_shape[-1] or 0)
        inner = max(1, channels // 8)
        self.f, self.g, self.h = (self._convolution(inner, channels) for _ in range(3))
        self.v = self._convolution(channels, inner)
        self.gamma = self.add_weight(shape=(), initializer="zeros", name="gamma", autocast=False)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """See the class."""
        wide = tf.cast(x, tf.float32)
        f = _flatten_positions(self.f(wide))
        g = _flatten_positions(self.g(wide))
        h = _flatten_positions(self.h(wide))
        weights = tf.nn.softmax(tf.matmul(g, f, transpose_b=True))  # [batch, i, j]
        rows = tf.shape(x)[1]
        cols = tf.shape(x)[2]
        attended = tf.reshape(tf.matmul(weights, h), [-1, rows, cols, h.shape[-1]])
        return tf.cast(wide + tf.convert_to_tensor(self.gamma) * self.v(attended), x.dtype)

    def normalized(self) -> list[SpectralNormalization]:
        """Return its layers with a normalised kernel: four or none."""
        return [self.f, self.g, self.h, self.v] if self.spectral else []

    def _convolution(self, filters: int, channels: int) -> keras.layers.Layer:
        convolution: keras.layers.Layer = keras.layers.Conv2D(
            filters, 1, use_bias=False, dtype="float32"
        )
        convolution = SpectralNormalization(convolution) if self.spectral else convolution
        convolution.build((None, None, None, channels))
        return convolution

    def get_config(self) -> dict[str, object]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "spectral": self.spectral}


def find_normalized(layers: Iterable[keras.layers.Layer]) -> list[SpectralNormalization]:
    """Find the layers with a normalised kernel, those of self-attention too."""
    normalized = []
    for layer in layers:
        if isinstance(layer, SpectralNormalization):
            normalized.append(layer)
        elif isinstance(layer, SelfAttention):
            normalized += layer.normalized()
    return normalized


@contextmanager
def cached_kernels(layers: Iterable[SpectralNormalization]) -> Iterator[None]:
    """Within, all calls of each layer share a kernel that is normalised once."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.cached_kernel())
        yield


def upsample(x: tf.Tensor) -> tf.Tensor:
    """Double the rows and columns of maps [batch, rows, cols, channels] by nearest neighbours."""
    rows, cols, channels = x.shape[1:]
    # tf.tile's gradient makes oneDNN complain
    repeated = x[:, :, None, :, None] * tf.ones([1, 1, 2, 1, 2, 1], x.dtype)
    return tf.reshape(repeated, [-1, 2 * rows, 2 * cols, channels])


def part_by_label(values: tf.Tensor, labels: tf.Tensor, expected: Sequence[int]) -> list[tf.Tensor]:
    """Part a batch that has each of the `expected` labels, ascending, equally often.

    The parts come in the order of the labels, each in that of the batch; XLA knows their sizes, and
    does not check the labels.
    """
    share, rest = divmod(values.shape[0], len(expected))
    if rest:
        raise ConfigError(
            f"training.batch_size: {values.shape[0]} patches can't have {len(expected)} labels "
            "equally often"
        )
    order = tf.argsort(labels, stable=True)
    wanted = tf.constant(np.repeat(expected, share), labels.dtype)
    tf.debugging.assert_equal(
        tf.gather(labels, order), wanted, f"a batch must have the labels {expected} equally often"
    )
    return tf.split(tf.gather(values, order), len(expected))


def sample_bilinear(image: tf.Tensor, rows: tf.Tensor, cols: tf.Tensor) -> tf.Tensor:
    """Interpolate an image between its pixels, by gathers, which XLA compiles.

    Args:
        image: float32 [n, size, size, channels]; 0 beyond its border.
        rows: float32 [n, height, width], places in px from the middle of the first pixel.
        cols: The same shape.
    """
    height, width, channels = image.shape[1:]
    padded = tf.pad(image, [[0, 0], [2, 2], [2, 2], [0, 0]])
    corners = [padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]]
    flat = tf.reshape(tf.concat(corners, -1), [-1, (height + 3) * (width + 3), 4 * channels])
    top = tf.floor(rows)
    left = tf.floor(cols)
    row = tf.cast(tf.clip_by_value(top, -2, height), tf.int32) + 2
    col = tf.cast(tf.clip_by_value(left, -2, width), tf.int32) + 2
    corners = tf.split(tf.gather(flat, row * (width + 3) + col, batch_dims=1), 4, axis=-1)
    below = (rows - top)[..., None]
    right = (cols - left)[..., None]
    upper = (1 - right) * corners[0] + right * corners[1]
    lower = (1 - right) * corners[2] + right * corners[3]
    return (1 - below) * upper + below * lower


def draw_uniform(shape: Any, seed: Any, low: float = 0, high: float = 1) -> tf.Tensor:
    """Draw float32 numbers, uniform in [low, high), that are the same on every device and with XLA.

    They are those of tf.random.stateless_uniform on a CPU. XLA's version draws the same bits, but
    makes other numbers of them.
    """
    share = tf.cast(_draw_bits(shape, seed), tf.float32) / LEVELS
    return share if (low, high) == (0, 1) else share * (high - low) + low


def draw_normal(shape: Any, seed: Any) -> tf.Tensor:
    """Draw float32 numbers of N(0, 1) by the algorithm of `draw_uniform`; XLA draws others."""
    return tf.random.stateless_normal(shape, seed, alg="philox")


def _draw_bits(shape: Any, seed: Any) -> tf.Tensor:
    """Draw int32 numbers, uniform in [0, LEVELS)."""
    # Not TensorFlow's default algorithm, for which XLA forgets the upper half of a seed.
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.int32, alg="philox")
    return bits & (LEVELS - 1)


@keras.saving.register_keras_serializable("tfmammo")
class Dropout(keras.layers.Dropout):
    """Dropout that is the same on a CPU, on a GPU and with XLA; each replica drops others."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See keras.layers.Dropout."""
        if not training or not self.rate:
            return inputs
        bits = _draw_bits(tf.shape(inputs), next_seed(self.seed_generator))
        is_kept = bits >= round(self.rate * LEVELS)
        return tf.where(is_kept, inputs / (1 - self.rate), tf.zeros_like(inputs))


def uniform_noise(seeds: tf.Tensor, size: int) -> tf.Tensor:
    """Draw float32 [n, size, size, 1], uniform in [0, 1), by the seeds, int64 [n, 2], alone."""
    shape = (size, size, 1)
    return seeded_draws(draw_uniform, shape, tf.cast(seeds, tf.int64))


def patch_seeds(image: tf.Tensor, step: tf.Tensor | int) -> tf.Tensor:
    """Derive seeds, int64 [n, 2], from the step, [] or [n], and from each patch's pixels.

    They depend neither on the patch's place in the batch nor on the device: the second number is a
    weighted sum of the pixels' bits, float32.
    """
    pixels = int(np.prod(image.shape[1:]))
    bits = tf.cast(tf.bitcast(tf.reshape(image, [-1, pixels]), tf.int32), tf.int64)
    digest = tf.reduce_sum(bits * tf.constant(np.arange(pixels) % 1021 + 1, tf.int64), axis=1)
    return tf.stack([tf.broadcast_to(tf.cast(step, tf.int64), tf.shape(digest)), digest], axis=1)


def parse_margin(value: Any) -> Margin | None:
    """Read a margin from a card's JSON; anything else is a ValidationError."""
    return TypeAdapter(Margin | None).validate_python(value)


def enlarge(mask: tf.Tensor, margin: Margin) -> tf.Tensor:
    """Enlarge a mask [..., size, size, 1] of 0 and 1 by its margin, within its patch.

    It is scaled about the patch's centre by margin / 256, by nearest neighbours, and cropped back
    to its size, or dilated by a disc.

    Source:
        Shen et al. 2021 (models.infilling), section 4.1, step 3; section 3.1 for the dilation.
    """
    size = int(mask.shape[-2])
    if isinstance(margin, Dilation):
        return _dilate(mask, round(size * margin.dilation / FULL))
    border = round(size * (margin - FULL) / (2 * FULL))
    # Pixel p is at p + border of the enlarged patch. Its centre, 2 p + 2 border + 1 half pixels,
    # falls into this source pixel.
    sources = (2 * (np.arange(size) + border) + 1) * size // (2 * (size + 2 * border))
    return tf.gather(tf.gather(mask, sources, axis=-3), sources, axis=-2)


def _dilate(mask: tf.Tensor, radius: int) -> tf.Tensor:
    """Set every pixel that is no farther than radius px from the mask."""
    steps = np.arange(-radius, radius + 1)
    disc = (np.hypot(steps[:, np.newaxis], steps) <= radius).astype(np.float32)
    flat = tf.reshape(tf.cast(mask, tf.float32), [-1, *mask.shape[-3:]])
    # as a convolution, which XLA compiles, unlike tf.nn.dilation2d
    reached = tf.nn.conv2d(flat, disc[..., np.newaxis, np.newaxis], 1, "SAME") > 0.5
    return tf.reshape(tf.cast(reached, mask.dtype), tf.shape(mask))


def tri_label(
    image: tf.Tensor, mask: tf.Tensor, noise: tf.Tensor, margin: Margin | None = 296
) -> tf.Tensor:
    """Make an infilling's input: the patch without its lesion, the mask, and the margin.

    Args:
        image: float32 [n, size, size, 1] in [0, 1]; n may be missing, from all.
        mask: The same shape, 0 or 1.
        noise: The same shape, uniform in [0, 1]; see `uniform_noise`.
        margin: px that a mask of 256 px is scaled to, 276, 296 or 316 in the paper, or a Dilation.

    Returns:
        float32 [n, size, size, 3] in [0, 1]; [n, size, size, 2] where the margin is None.

    Source:
        Shen et al. 2021 (models.infilling), sections 3.1, 3.3 and 4.1.
    """
    tissue = tf.where(mask > 0, noise, image)
    if margin is None:
        return tf.concat([tissue, mask], axis=-1)
    return tf.concat([tissue, mask, tf.maximum(enlarge(mask, margin) - mask, 0)], axis=-1)


def label_patches(
    image: tf.Tensor, mask: tf.Tensor, step: tf.Tensor | int, margin: Margin | None
) -> tf.Tensor:
    """Make `tri_label`s whose noise follows from each patch's pixels and the step, [] or [n]."""
    noise = uniform_noise(patch_seeds(image, step), image.shape[1])
    return tri_label(image, mask, noise, margin)


def seeded_dropout(x: tf.Tensor, rate: float, seeds: tf.Tensor, level: int) -> tf.Tensor:
    """Drop elements of a map by draws that depend on each sample's seed alone; see `seeded_draws`.

    Elements that stay are divided by 1 - rate.
    """
    draws = seeded_draws(draw_uniform, x.shape[1:], seeds, level)
    return tf.where(draws >= rate, x / (1 - rate), tf.zeros_like(x))


def seeded_draws(
    distribution: Callable[..., tf.Tensor],
    shape: Sequence[int],
    seeds: tf.Tensor,
    level: int | None = None,
) -> tf.Tensor:
    """Draw float32 [n, *shape] by each sample's seed alone: not by earlier calls, nor by the batch.

    Args:
        distribution: `draw_uniform` or `draw_normal`.
        shape: Of one sample.
        seeds: int64 [n, 2], see `patch_seeds`.
        level: A number of its own for each use of a seed, so that their draws differ; None: the
            seed has one use.
    """

    def draw(seed: tf.Tensor) -> tf.Tensor:
        own = seed if level is None else tf.random.fold_in(seed, level)
        return distribution(shape, own)

    return tf.map_fn(draw, seeds, fn_output_signature=tf.TensorSpec(shape, tf.float32))


def next_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """Take the seed, int32 [2], of a layer's next call on this replica; all replicas count alike.

    Replicas are 2^24 calls apart.
    """
    context = tf.distribute.get_replica_context()  # None outside replicas
    replica = context.replica_id_in_sync_group if context else 0
    return tf.cast(generator.next(), tf.int32) + tf.stack([0, replica * 2**24])


def step_seed(step: tf.Tensor | int, use: int = 0) -> tf.Tensor:
    """Derive the seed, int64 [2], of one use of random numbers in a step on this replica.

    A resumed run therefore draws what an uninterrupted one would have. The seed depends on
    training.seed too, which the training loop hands to keras.utils.set_random_seed. `use`, 0 to
    1023, is a number of its own for each use in one step.
    """
    run = tf.constant(tf.compat.v1.get_seed(0)[0], tf.int64)
    replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
    return tf.stack([tf.cast(step, tf.int64), run * 2**32 + replica * 1024 + use])


def draw_latent_noise(count: tf.Tensor, z: int, step: tf.Tensor) -> tf.Tensor:
    """Draw a step's latent noise on this replica: float32 [count, z], uniform in [-1, 1]."""
    return draw_uniform([count, z], step_seed(step), -1.0, 1.0)


def sample_latent_noise(count: int, z: int, seed: int = 0) -> NDArray[np.float32]:
    """Sample latent noise for an exported generator: float32 [count, z], uniform in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, z)).astype(np.float32)


def _unit(vector: tf.Tensor) -> tf.Tensor:
    return vector / tf.maximum(tf.norm(vector), TINY)


def _flatten_positions(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [tf.shape(x)[0], -1, x.shape[-1]])

"""Fixtures shared by all tests.

Plain functions that tests share stand beside it, in the modules of tests/ that are no test.
"""

import ctypes
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("COLUMNS", "140")  # of what commands print, whatever the terminal
# oneDNN's own allocator never gives memory back, so that a worker would keep its largest test's.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
# Tests score with random networks, unless they ask for `published_weights`.
os.environ.pop("TFMAMMO_WEIGHTS", None)
# Tests never write to the store or the cache of whoever runs them.
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["TFMAMMO_CACHE"] = os.path.join(tempfile.gettempdir(), f"tfmammo-tests-{os.getuid()}")
# A shell's background processes ignore Ctrl-C, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import psutil
import pytest
from rich.logging import RichHandler

from tests import once

pytest_plugins = ["tests.memory"]

REPOSITORY = Path(__file__).resolve().parents[1]
# The same examples in every run, however busy the machine is: a change alone makes a test fail.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

MEMORY_FOLDER = "/dev/shm"
ROOM = 8 * 2**30  # bytes, four times what the files of a run take


def pytest_configure():
    """Keep the tests' files in memory where there is room.

    A disk takes some 20 ms for each commit of MLflow's store, and a training commits a hundred
    times.
    """
    if os.path.isdir(MEMORY_FOLDER) and os.access(MEMORY_FOLDER, os.W_OK | os.X_OK):
        free = shutil.disk_usage(MEMORY_FOLDER).free
        if min(free, psutil.virtual_memory().available) > ROOM:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY_FOLDER)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """What is long is slow as well; -m then chooses."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item):
    """Spare tests what an earlier one of this process has done already."""
    once.share_store_tables()
    once.share_renderings(item.path.name != "test_phantom.py")


def pytest_collection_finish():
    """Leave what the imports made out of every later collection of garbage: TensorFlow, Keras and
    MLflow are a million objects, and looking through them takes half a second after every test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real mammograms; a test that asks for it is skipped where it is missing."""
    folder = Path(os.environ.get("TFMAMMO_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real mammograms: {folder.name} is missing; name their folder in TFMAMMO_TEST_DATA"
        )
    return folder


@pytest.fixture
def published_weights(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of published networks, named in TFMAMMO_WEIGHTS during the test.

    A test that asks for it is skipped where it is missing.
    """
    folder = os.environ.get("TFMAMMO_TEST_WEIGHTS", "")
    if not folder:
        pytest.skip("no published networks: name the folder of their .npz in TFMAMMO_TEST_WEIGHTS")
    monkeypatch.setenv("TFMAMMO_WEIGHTS", folder)
    return Path(folder)


@pytest.fixture(autouse=True)
def float32_policy():
    """Every test starts and ends under the float32 policy; one that never touches Keras does not
    pay for it.
    """
    _reset_policy()
    yield
    _reset_policy()


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command that runs in this process leaves no handler behind: the stderr it writes to is
    closed when its test ends.
    """
    root = logging.getLogger()
    package = logging.getLogger("tfmammo")
    handlers = list(root.handlers)
    levels = (root.level, package.level)
    yield
    for handler in root.handlers[:]:
        if handler not in handlers and type(handler) in (logging.StreamHandler, RichHandler):
            root.removeHandler(handler)
    root.setLevel(levels[0])
    package.setLevel(levels[1])


@pytest.fixture(autouse=True)
def environment_as_before():
    """Environment variables of one test do not reach the processes that later ones start.

    MLflow keeps the address of a store there, tf2onnx the level of TensorFlow's log.
    """
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def collect_networks():
    """Networks of one test do not stay in memory for the next.

    Collecting takes time, so that it is skipped after tests that were too short to build a
    network.
    """
    start = time.monotonic()
    gradients = set(_find_custom_gradients())
    yield
    if "keras" in sys.modules and time.monotonic() - start > 0.5:
        _forget_custom_gradients(gradients)
        _free_memory()


@pytest.fixture(autouse=True, scope="module")
def forget_networks():
    """Full-size networks of one file do not stay in memory for the next.

    What outlives a file, modules above all, is skipped of later collections. They would look
    through more objects from file to file, and take a quarter of all time.
    """
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session(free_memory=False)
        _forget_custom_gradients(set())
        _free_memory()
        gc.freeze()


def _free_memory() -> None:
    """Collect garbage, and give its pages back to the system, which the C library would keep."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def _find_custom_gradients() -> dict[str, object]:
    """Return TensorFlow's registry of gradients, in which every traced custom gradient stays.

    An entry holds its graph and thus the weights that it read: a traced step of an optimizer
    of Keras keeps its model in memory for as long as the process lives.
    """
    if "tensorflow" not in sys.modules:
        return {}
    from tensorflow.python.framework import ops

    return ops.gradient_registry._registry


def _forget_custom_gradients(kept: set[str]) -> None:
    registry = _find_custom_gradients()
    for name in [name for name in registry if name.startswith("CustomGradient-")]:
        if name not in kept:
            del registry[name]


def _reset_policy() -> None:
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def where():
    """A function (config) -> the overrides that say where its archives and its generator are, which
    its recipes don't.
    """

    def overrides(config) -> list[str]:
        roots = {
            "data.root": config.data.root,
            "lesions.root": config.lesions and config.lesions.root,
            "generator": config.generator,
        }
        return [f"{key}={value}" for key, value in roots.items() if value]

    return overrides


@pytest.fixture
def random_patches():
    """A function (count, size=32) -> Patches: noise with a bright disc where the mask is, two
    patches a patient.
    """
    import numpy as np

    from tfmammo.data.patches import Patches

    def make(count: int, size: int = 32) -> Patches:
        random = np.random.default_rng(count)
        rows, cols = np.mgrid[:size, :size]
        centres = random.uniform(size / 3, 2 * size / 3, (count, 2, 1, 1))
        distances = np.hypot(rows - centres[:, 0], cols - centres[:, 1])
        masks = (distances < size / 4)[..., None].astype(np.uint8)
        images = np.clip(0.3 + 0.4 * masks + random.normal(0, 0.1, masks.shape), 0, 1)
        images = images.astype(np.float32)
        patients = np.array([f"p{i // 2}" for i in range(count)])
        return Patches(images, masks, patients, np.array([f"image{i}#0" for i in range(count)]))

    return make


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An MLflow database without runs: making its tables takes seconds, so that tests take copies
    of it.
    """
    import mlflow

    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def tracking_uri(empty_store, tmp_path_factory) -> str:
    """A store of the test's own, in which no model is the best yet."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copyfile(empty_store, database)
    return f"sqlite:///{database}"


@pytest.fixture
def tiny_can(tracking_uri):
    """A function (model values, **overrides of training) -> Experiment of a really small CAN."""
    from tfmammo.config import DataConfig, Experiment, TrackingConfig, TrainingConfig
    from tfmammo.models.can import CANConfig

    def make(model: dict | None = None, **training: object) -> Experiment:
        rhythm = ("steps_per_loop", "checkpoint_every", "validate_every", "grid_every")
        defaults = dict.fromkeys(rhythm, 2) | {"steps": 4, "precision": "float32"}
        return Experiment[CANConfig](
            name="can",
            data=DataConfig(size=32),
            training=TrainingConfig(**{**defaults, **training}),
            tracking=TrackingConfig(uri=tracking_uri, system_metrics=False),
            model=CANConfig(**{"filters": (4, 8, 8), "discriminator_filters": 4, **(model or {})}),
        )

    return make


def _export(network, folder: Path, step: int, model: dict, patients=(), **data: object) -> Path:
    """Export a network with a card that says how and on whom it was trained."""
    from tfmammo.config import DataConfig
    from tfmammo.tracking.export import export

    config = {"data": DataConfig(**data).model_dump(mode="json"), "model": model}
    card = {"name": network.name, "step": step, "config": config}
    return export(network, folder / "export", card | {"train_patients": sorted(patients)})


@pytest.fixture(scope="session")
def tiny_infilling(tmp_path_factory):
    """A function (size=64, margin=296, offset=0.0, **data) -> the export of an infilling that needs
    no training.

    It blurs the tissue around the mask and adds 0.7 on the mask, 0.2 on the margin and `offset`
    everywhere.
    """
    import keras
    import tensorflow as tf

    from tests.known_networks import KnownModel
    from tfmammo.nn.networks import export_function

    class Brighten(keras.layers.Layer):
        def __init__(self, offset):
            super().__init__()
            initializer = keras.initializers.Constant([0.7, 0.2, offset])
            self.added = self.add_weight(shape=(3,), initializer=initializer)

        def call(self, x):
            tissue = tf.nn.avg_pool2d(x[..., :1] * (1 - x[..., 1:2]), 5, 1, "SAME")
            margin = x[..., 2:] if x.shape[-1] == 3 else 0.0
            added = self.added[0] * x[..., 1:2] + self.added[1] * margin + self.added[2]
            return tf.clip_by_value(tissue + added, 0.0, 1.0)

    def make(size=64, margin=296, offset=0.0, **data):
        shape = (size, size, 3 if margin else 2)
        generator = keras.Sequential([keras.Input(shape), Brighten(offset)])
        infill = export_function(lambda tri_label: {"image": generator(tri_label)}, tri_label=shape)
        model = KnownModel("infilling", {"generator": generator}, {"generator": infill})
        defaults = {"size": size, "frame": "padded", "padding": 40, "window": (0, 1)}
        folder = tmp_path_factory.mktemp("infilling")
        return _export(model, folder, 3, {"margin": margin}, **defaults | data)

    return make


@pytest.fixture(scope="session")
def tiny_blending(tmp_path_factory):
    """A function (size=32, patients=(), **data) -> the export of a small blending network, trained
    for two steps on random patches.
    """
    import numpy as np

    from tfmammo.models.blending import Blending, BlendingConfig

    def make(size=32, patients=(), **data):
        config = BlendingConfig(widths=(4, 8), discriminator_filters=4)
        random = np.random.default_rng(0)
        blending = Blending(config, size)
        mask = np.zeros((4, size, size, 1), np.float32)
        mask[2:, size // 3 : 2 * size // 3, size // 3 : size // 2] = 1
        batch = {"image": random.random(mask.shape, np.float32), "mask": mask}
        batch["label"] = np.array([0, 0, 1, 1], np.int32)
        for _ in range(2):
            blending.train_step(batch)
        defaults = {"size": size, "frame": "square", "context": 2, "window": (0, 1)}
        folder = tmp_path_factory.mktemp("blending")
        model = config.model_dump(mode="json")
        return _export(blending, folder, 2, model, patients, **defaults | data)

    return make


@pytest.fixture(scope="session")
def tiny_contextual(tmp_path_factory):
    """A function (target="mass", size=32, patients=(), idle=0.0, level=0.6, judge_seed=None,
    **data) -> the export of a contextual GAN that needs no training.

    Its lesion is a disc of radius size / 4 in the middle, `level` high (for removal: deep), and
    empty, so that post-processing discards it, where the first random number is below -1 + 2 *
    idle.
    """
    import numpy as np
    import tensorflow as tf

    from tests.known_networks import KnownModel, make_pixelwise
    from tfmammo.models.contextual import KINDS, ContextualConfig
    from tfmammo.nn.networks import export_function

    def make_model(size, level, idle):
        centre = np.arange(size) - (size - 1) / 2
        disc = (np.hypot(centre[:, None], centre) < size / 4).astype(np.float32)[..., None]
        network = make_pixelwise(size, level, 0.0)

        def average(image, noise):
            active = tf.cast(noise[:, :1] >= -1 + 2 * idle, tf.float32)[..., None, None]
            lesion = active * network(tf.broadcast_to(disc, tf.shape(image)))
            return {"image": tf.clip_by_value(image + lesion / 2, 0.0, 1.0), "lesion": lesion}

        function = export_function(average, image=disc.shape, noise=(3,))
        return KnownModel("contextual", {"average": network}, {"average": function})

    def make(target="mass", size=32, patients=(), idle=0.0, level=0.6, judge_seed=None, **data):
        sampling = {"scale": (0.25, 0.25), "offset": 10}
        defaults = {"size": size, "kinds": KINDS[target], "sampling": sampling}
        values = {"target": target, "judge_seed": judge_seed}
        model = ContextualConfig(**values, postprocess={"dilation": 1, "edge": 1})
        network = make_model(size, -level if target == "removal" else level, idle)
        folder = tmp_path_factory.mktemp("contextual")
        section = model.model_dump(mode="json")
        return _export(network, folder, 3, section, patients, **defaults | data)

    return make

"""Fixtures shared by all tests."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real mammograms; a test that asks for it is skipped where it is missing."""
    folder = Path(os.environ.get("TFMAMMO_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real mammograms: {folder.name} is missing; name their folder in TFMAMMO_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def float32_policy():
    """Every test starts and ends under the float32 policy; one that never touches Keras does not pay for it."""
    _reset_policy()
    yield
    _reset_policy()


@pytest.fixture(autouse=True, scope="module")
def forget_networks():
    """Full-size networks of one file do not stay in memory for the next."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()
        gc.collect()


def _reset_policy() -> None:
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture
def random_patches():
    """A function (count, size=32) -> Patches: noise with a bright disc where the mask is, two patches a patient."""
    import numpy as np

    from tfmammo.data.patches import Patches

    def make(count: int, size: int = 32) -> Patches:
        random = np.random.default_rng(count)
        rows, cols = np.mgrid[:size, :size]
        centres = random.uniform(size / 3, 2 * size / 3, (count, 2, 1, 1))
        masks = (np.hypot(rows - centres[:, 0], cols - centres[:, 1]) < size / 4)[..., None].astype(np.uint8)
        images = np.clip(0.3 + 0.4 * masks + random.normal(0, 0.1, masks.shape), 0, 1).astype(np.float32)
        patients = np.array([f"p{i // 2}" for i in range(count)])
        return Patches(images, masks, patients, np.array([f"image{i}#0" for i in range(count)]))

    return make


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory) -> str:
    """One MLflow store for the session: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def tiny_can(tracking_uri):
    """A function (model values, **overrides of training) -> Experiment of a really small CAN."""
    from tfmammo.config import DataConfig, Experiment, TrackingConfig, TrainingConfig
    from tfmammo.models.can import CANConfig

    def make(model: dict | None = None, **training: object) -> Experiment:
        chosen = {"steps": 4, "steps_per_loop": 2, "checkpoint_every": 2, "validate_every": 2, "grid_every": 2, "precision": "float32"}
        return Experiment[CANConfig](
            name="can",
            data=DataConfig(size=32),
            training=TrainingConfig(**{**chosen, **training}),
            tracking=TrackingConfig(uri=tracking_uri, system_metrics=False),
            model=CANConfig(**{"filters": (4, 8, 8), "discriminator_filters": 4, **(model or {})}),
        )

    return make

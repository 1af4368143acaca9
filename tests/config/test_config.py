"""YAML and overrides become one frozen experiment, or one sentence that names the key."""

import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, PositiveFloat, ValidationError

from tfmammo.config import (
    DataConfig,
    Experiment,
    Frozen,
    TrainingConfig,
    dump,
    load,
    parse,
    read_yaml,
)
from tfmammo.errors import ConfigError
from tfmammo.models.can import CANConfig


class Toy(Frozen):
    learning_rate: PositiveFloat = 1e-3
    filters: tuple[int, ...] = (4, 8)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    limits: tuple[float, ...] = ()


@pytest.fixture(scope="module")
def minimal(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "toy.yaml"
    path.write_text("name: toy\nmodel: {}\n", encoding="utf-8")
    return path


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "experiment.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def sentence(path: Path, *overrides: str, model: type = Toy) -> str:
    """The one-line error of a config that must not be accepted."""
    with pytest.raises(ConfigError) as raised:
        load(path, overrides, model)
    assert "\n" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, (
        "a chained traceback would be printed"
    )
    return str(raised.value)


def test_a_minimal_file_takes_every_default_and_overrides_win_over_the_file(minimal, tmp_path):
    experiment = load(minimal, model=Toy)
    assert (experiment.name, experiment.data, experiment.training, experiment.model) == (
        *("toy", DataConfig(), TrainingConfig(), Toy()),
    )
    text = "name: toy\ntraining: {steps: 7, batch_size: 2}\nmodel: {learning_rate: 5e-1}\n"
    assert yaml.safe_load(text)["model"]["learning_rate"] == "5e-1", "PyYAML alone reads a string"
    path = written(tmp_path, text)
    overridden = load(path, ("training.steps=3", "training.seed=4", "data.root=/some/where"), Toy)
    assert overridden.training == TrainingConfig(steps=3, batch_size=2, seed=4)
    assert overridden.model.learning_rate == 0.5 and overridden.data.root == Path("/some/where")
    assert load(minimal, ["model.anything.at_all=3"]).model == {"anything": {"at_all": 3}}


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.steps=", "training", "steps", None),
        ("tracking.uri=sqlite:///a=b.db", "tracking", "uri", "sqlite:///a=b.db"),
        ("model.filters=[4, 8, 16]", "model", "filters", (4, 8, 16)),
        (" model.dropout =0", "model", "dropout", 0.0),
    ],
)
def test_override_values_are_typed(minimal, override, section, key, value):
    found = getattr(getattr(load(minimal, [override], Toy), section), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.stepz=3", "training.stepz: unknown key, did you mean training.steps?"),
        ("trainings.steps=3", "trainings: unknown key"),
        ("training.steps=many", "training.steps"),
        ("training.steps.x=3", "training.steps"),
        ("data.fold=3", "data: fold 3"),
        ("data.percentiles=[1, 101]", "data: percentiles"),
        ("data.percentiles=[5]", "data.percentiles.1: missing"),
        ("data.paper_test=850", "data: paper_test"),
        ("data.kinds=[]", "data.kinds"),
        ("training.seed=4294967296", "training.seed"),
        ("name=CAN 1", "name"),
        # beyond any machine, or what float32 can hold
        ("data.size=1000000", "data.size"),
        ("training.accumulate=100000000000000000000", "training.accumulate"),
        ("model.learning_rate=1e300", "model.learning_rate"),
        ("model.limits=[1e300]", "model.limits"),
        # values that are shown in a few words
        (f"training.steps={'x' * 5000}", "training.steps"),
        (f"training.precision={'x' * 5000}", "training.precision"),
    ],
    ids=lambda text: text[:40],
)
def test_a_wrong_value_is_one_sentence_that_names_file_and_key(minimal, override, key):
    said = sentence(minimal, override)
    assert said.startswith(f"{minimal}: {key}") and len(said) < len(str(minimal)) + 250


def test_every_fault_is_named_at_once(minimal, tmp_path):
    text = sentence(minimal, "training.stepz=3", "data.size=-1")
    assert text.count("; ") == 1 and "data.size: " in text and "; training.stepz: " in text
    path = written(tmp_path, "training: {}\n")
    assert sentence(path) == f"{path}: name: missing; model: missing"
    largest = load(minimal, ["model.limits=[3.4028234e38]"], Toy).model.limits
    assert largest == (3.4028234e38,)


@pytest.mark.parametrize(
    "override",
    ["", "training.steps", "=3", ".steps=3", "training.=3", "training..steps=3", " =3"]
    # no YAML
    + [f"training.steps={value}" for value in ("[1", "{a: 1", "'open", "a: b: c", "@x")]
    + ["training.steps=!!python/object:os.system x", "data={size: 64, size: 32}"]
    # PyYAML's conversions fail
    + [f"training.steps={value}" for value in ("2020-99-99", "0x_", "!!int x", "!!bool x")]
    + [f"training.steps={value}" for value in ("!!timestamp x", "9" * 5000, "[" * 500)],
    ids=lambda text: text[:40],
)
def test_a_malformed_override_is_named(minimal, override):
    assert sentence(minimal, override).startswith(f"--set {override}: ")


GROWING = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: \xff\xfe", "can't be read"),
        *((text, "is not YAML (") for text in ("name: [toy", "name: toy\n\tmodel: {}", "name: 'x")),
        *((text, "is not YAML (") for text in ("name: 2020-99-99", "name: !!int x")),
        *(
            (text, "contains no sections")
            for text in ("", "# a comment\n", "- a\n- b\n", "3", "null")
        ),
        ("data: {name: folder}\nmodel: {}\ndata: {size: 128}\n", "is not YAML (data is there"),
        (GROWING, "is not YAML (its aliases"),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, said):
    path = written(tmp_path, content)
    assert sentence(path).startswith(f"{path}: {said}")


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    assert sentence(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such config file"
    assert sentence(tmp_path).startswith(f"{tmp_path}: can't be read")


def test_configs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Experiment[Toy](name="toy", model=Toy()).training.steps = 3


def test_dump_reads_back_equal(minimal, tmp_path):
    overrides = ["data.root=a/b", "data.kinds=[mass, distortion]", "training.steps=3"]
    overrides += ["training.initial='2020-01-01'", "model.learning_rate=1e-7", "model.filters=[]"]
    experiment = load(minimal, [*overrides, "tracking.uri='on'"], Toy)
    assert parse(Experiment[Toy], written(tmp_path, dump(experiment))) == experiment
    assert experiment.model.filters == () and experiment.training.initial == "2020-01-01"
    other = written(tmp_path, "filters: [1, 2]\n")
    assert parse(Toy, other, ["dropout=0"]) == Toy(filters=(1, 2), dropout=0)


IRRELEVANT = [
    *(f"training.{key}=9" for key in ("steps", "epochs", "checkpoint_every", "validate_every")),
    *(f"training.{key}=9" for key in ("grid_every", "grid_samples", "keep")),
    *("training.epoch_samples=9", "training.steps_per_loop=3"),
    *("tracking.uri=http://localhost", "tracking.experiment=x", "tracking.register_models=false"),
    *("tracking.system_metrics=false", "data.root=x", "data.root=../x", "data.records=x"),
    *("data.split_file=x/split.json", "data.added.synthetic=x"),
]
RELEVANT = [
    *("name=other", "data.name=inbreast", "data.added.copies=3", "data.fold=1", "data.seed=1"),
    *("data.augment=false", "training.batch_size=2", "training.accumulate=2", "training.seed=1"),
    *("training.exchange=bfloat16", "training.precision=float32", "training.deterministic=true"),
    *("training.initial=x", "model.dropout=0", "model.filters=[4]", "model.learning_rate=2"),
]


@pytest.mark.parametrize("override", IRRELEVANT)
def test_identity_ignores_how_long_how_often_and_where(minimal, override):
    plain = load(minimal, model=Toy)
    changed = load(minimal, [override], Toy)
    assert changed != plain
    assert changed.identity() == plain.identity() and changed.fingerprint() == plain.fingerprint()


def test_identity_and_fingerprint_hold_everything_else(minimal):
    experiments = [
        load(minimal, overrides, Toy) for overrides in ([], *([override] for override in RELEVANT))
    ]
    assert len({experiment.fingerprint() for experiment in experiments}) == len(experiments)
    assert all(a.identity() != experiments[0].identity() for a in experiments[1:])
    assert all(len(e.fingerprint()) == 8 and int(e.fingerprint(), 16) >= 0 for e in experiments)


KEYS = st.sampled_from(
    ["name", "data", "data.root", "data.kinds", "training.steps", "model", "model.filters", "x"]
)
YAML_LIKE = st.text("0123456789abefnotxyz_-+.:!&*[]{}<>?%@`'\"|#,= \nT\\~", max_size=30)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    override=st.one_of(
        st.text(max_size=40), st.builds("{}={}".format, KEYS, st.text(max_size=20) | YAML_LIKE)
    )
)
def test_no_override_raises_anything_but_a_config_error(minimal, override):
    try:
        assert isinstance(load(minimal, [override], Toy), Experiment)
    except ConfigError as error:
        assert str(error)


@settings(max_examples=100)
@given(content=st.binary(max_size=60) | YAML_LIKE.map(str.encode))
def test_no_file_raises_anything_but_a_config_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load(path, model=Toy)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"tiles": {}}, "tiles.overlap"),
        ({"canvas": (512, 128), "tiles": {"overlap": 128}}, "less than the tiles' 512 x 128 px"),
        ({"canvas": (64, 64), "records": "folder"}, "canvas and tiles are for detectors"),
        ({"size": 512, "tiles": {}, "records": "folder"}, "canvas and tiles are for detectors"),
        ({"canvas": (64, 0)}, "canvas"),
        ({"tiles": {"overlapp": 3}}, "tiles.overlapp"),
    ],
)
def test_a_canvas_or_tiles_that_make_no_sense(data, said):
    with pytest.raises(ValidationError, match=said):
        DataConfig(**data)
    assert DataConfig(size=512, tiles={}).tiles.overlap == 256
    assert DataConfig(size=320).shape == (320, 320)
    assert DataConfig(size=320, canvas=(1344, 800)).shape == (1344, 800)


def test_a_merged_key_is_no_key_that_stands_twice(tmp_path):
    merged = written(tmp_path, "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n")
    assert read_yaml(merged) == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}}


def test_an_alias_of_itself_is_refused_in_little_memory(tmp_path):
    path = written(tmp_path, f"a: &a [{', '.join(['*a'] * 20_000)}]")
    tracemalloc.start()
    assert "its aliases expand to more than" in sentence(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize("key", ["model.filters", "model.discriminator_filters"])
def test_layers_of_a_hundred_million_channels_are_refused(key):
    value = "[100000000]" if key == "model.filters" else "100000000"
    assert key in sentence(Path("can"), f"{key}={value}", model=CANConfig)

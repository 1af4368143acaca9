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


def test_a_minimal_file_takes_every_default(minimal):
    experiment = load(minimal, model=Toy)
    assert (experiment.name, experiment.data, experiment.training) == (
        "toy",
        DataConfig(),
        TrainingConfig(),
    )
    assert experiment.model == Toy()


def test_the_file_wins_over_defaults_and_overrides_over_the_file(tmp_path):
    path = written(
        tmp_path, "name: toy\ntraining: {steps: 7, batch_size: 2}\nmodel: {learning_rate: 0.5}\n"
    )
    experiment = load(path, ("training.steps=3", "data.root=/some/where"), Toy)
    assert (
        experiment.training.steps,
        experiment.training.batch_size,
        experiment.model.learning_rate,
    ) == (3, 2, 0.5)
    assert experiment.data.root == Path("/some/where")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.steps=3", "training", "steps", 3),
        ("training.steps=null", "training", "steps", None),
        ("training.steps=", "training", "steps", None),
        ("training.deterministic=true", "training", "deterministic", True),
        (
            "training.initial=models:/tfmammo-can@best",
            "training",
            "initial",
            "models:/tfmammo-can@best",
        ),
        ("tracking.uri=sqlite:///a=b.db", "tracking", "uri", "sqlite:///a=b.db"),
        ("data.root=null", "data", "root", None),
        ("data.percentiles=[1, 99]", "data", "percentiles", (1.0, 99.0)),
        ("data.kinds=[mass, calcification]", "data", "kinds", ("mass", "calcification")),
        ("model.filters=[4, 8, 16]", "model", "filters", (4, 8, 16)),
        ("model.learning_rate=2e-4", "model", "learning_rate", 2e-4),
        (" model.dropout =0", "model", "dropout", 0.0),
    ],
)
def test_override_values_are_typed(minimal, override, section, key, value):
    found = getattr(getattr(load(minimal, [override], Toy), section), key)
    assert found == value and type(found) is type(value)


def test_scientific_notation_without_a_point_is_a_number(tmp_path):
    text = "name: toy\nmodel: {learning_rate: 2e-4}\n"
    assert yaml.safe_load(text)["model"]["learning_rate"] == "2e-4", "PyYAML alone reads a string"
    assert load(written(tmp_path, text), model=Toy).model.learning_rate == 2e-4


@pytest.mark.parametrize("section", ["", "training:\n", "training: 7\n"])
def test_an_override_opens_its_section(tmp_path, section):
    path = written(tmp_path, f"name: toy\nmodel: {{}}\n{section}")
    assert load(path, ["training.steps=3"], Toy).training == TrainingConfig(steps=3)


def test_an_override_keeps_its_neighbours(tmp_path):
    path = written(tmp_path, "name: toy\nmodel: {}\ntraining: {epochs: 5}\n")
    assert load(path, ["training.steps=3", "training.seed=4"], Toy).training == TrainingConfig(
        steps=3, seed=4, epochs=5
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.stepz=3", "training.stepz: unknown key"),
        ("trainings.steps=3", "trainings: unknown key"),
        ("model.depth=3", "model.depth: unknown key"),
        (
            "training.steps=many",
            "training.steps: input should be a valid integer, unable to parse string as an "
            "integer (got 'many')",
        ),
        ("training.steps=0", "training.steps: input should be greater than 0 (got 0)"),
        (
            "training.steps=2.5",
            "training.steps: input should be a valid integer, got a number with a fractional part "
            "(got 2.5)",
        ),
        ("training.steps=[3]", "training.steps: input should be a valid integer (got [3])"),
        (
            "training.batch_size=null",
            "training.batch_size: input should be a valid integer (got None)",
        ),
        ("training.steps.x=3", "training.steps: input should be a valid integer (got {'x': 3})"),
        (
            "training=3",
            "training: input should be a valid dictionary or instance of TrainingConfig (got 3)",
        ),
        ("model=null", "model: input should be a valid dictionary or instance of Toy (got None)"),
        (
            "training.precision=half",
            "training.precision: input should be 'auto', 'float32', 'mixed_float16' or "
            "'mixed_bfloat16'",
        ),
        ("data.kinds=mass", "data.kinds: input should be a valid tuple (got 'mass')"),
        (
            "data.kinds=[cyst]",
            "data.kinds.0: input should be 'mass', 'calcification', 'asymmetry' or 'distortion' "
            "(got 'cyst')",
        ),
        ("data.fold=3", "data: fold 3 is not one of the 3 folds 0 to 2"),
        (
            "data.percentiles=[99, 1]",
            "data: percentiles must be two rising numbers between 0 and 100",
        ),
        (
            "data.percentiles=[1, 101]",
            "data: percentiles must be two rising numbers between 0 and 100",
        ),
        ("data.percentiles=[5]", "data.percentiles.1: missing"),
        ("data.paper_test=850", "data: paper_test must be less than paper_samples"),
        ("data.context=0.5", "data.context: input should be greater than or equal to 1 (got 0.5)"),
        ("data.context=.inf", "data.context: input should be a finite number (got inf)"),
        ("model.learning_rate=.nan", "model.learning_rate: input should be"),
        (
            "data.kinds=[]",
            "data.kinds: tuple should have at least 1 item after validation, not 0 (got [])",
        ),
        (
            "training.seed=4294967296",
            "training.seed: input should be less than 4294967296 (got 4294967296)",
        ),
        ("name=CAN 1", "name: string should match pattern"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_file_and_key(minimal, override, said):
    assert sentence(minimal, override).startswith(f"{minimal}: {said}")


def test_every_fault_is_named_at_once(minimal):
    text = sentence(minimal, "training.stepz=3", "data.size=-1")
    assert (
        text == f"{minimal}: data.size: input should be greater than 0 (got -1); training.stepz: "
        "unknown key, did you mean training.steps?"
    )


def test_a_long_value_is_cut_short(minimal):
    assert len(sentence(minimal, f"training.steps={'x' * 5000}")) < len(str(minimal)) + 200


@pytest.mark.parametrize(
    "override", ["", "training.steps", "=3", ".steps=3", "training.=3", "training..steps=3", " =3"]
)
def test_a_malformed_override(minimal, override):
    assert sentence(minimal, override) == f"--set {override}: must read section.key=value"


@pytest.mark.parametrize(
    "value",
    ["[1", "{a: 1", "'open", "a: b: c", "@x", "!!python/object:os.system x"]  # no YAML
    # PyYAML's conversions fail
    + ["2020-99-99", "0x_", "!!int x", "!!bool x", "!!timestamp x", "9" * 5000, "[" * 500],
)
def test_an_override_that_is_no_yaml(minimal, value):
    assert (
        sentence(minimal, f"training.steps={value}")
        == f"--set training.steps={value}: the value is not YAML"
    )


def test_a_missing_file(tmp_path):
    assert sentence(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such config file"


def test_a_folder_in_place_of_a_file(tmp_path):
    assert sentence(tmp_path) == f"{tmp_path}: can't be read (IsADirectoryError)"


def test_a_file_that_is_no_text(tmp_path):
    path = written(tmp_path, b"name: \xff\xfe")
    assert sentence(path) == f"{path}: can't be read (UnicodeDecodeError)"


@pytest.mark.parametrize(
    "text",
    ["name: [toy", "name: toy\n\tmodel: {}", "name: 'toy", "name: 2020-99-99", "name: !!int x"],
)
def test_a_file_that_is_no_yaml(tmp_path, text):
    path = written(tmp_path, text)
    assert sentence(path).startswith(f"{path}: is not YAML (")


@pytest.mark.parametrize(
    "text", ["", "# nothing but a comment\n", "- a\n- b\n", "just words", "3", "null"]
)
def test_a_file_without_sections(tmp_path, text):
    path = written(tmp_path, text)
    assert sentence(path) == f"{path}: holds no sections"


def test_missing_sections_are_named(tmp_path):
    path = written(tmp_path, "training: {}\n")
    assert sentence(path) == f"{path}: name: missing; model: missing"


def test_configs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        TrainingConfig().steps = 3
    with pytest.raises(ValidationError, match="frozen"):
        Experiment[Toy](name="toy", model=Toy()).data = DataConfig()


def test_dump_reads_back_equal(minimal, tmp_path):
    overrides = (
        "data.root=a/b",
        "data.kinds=[mass, distortion]",
        "training.steps=3",
        "training.initial='2020-01-01'",
    )
    experiment = load(
        minimal,
        (*overrides, "model.learning_rate=1e-7", "model.filters=[]", "tracking.uri='on'"),
        Toy,
    )
    path = written(tmp_path, dump(experiment))
    assert parse(Experiment[Toy], path) == experiment
    assert experiment.model.filters == () and experiment.training.initial == "2020-01-01"


def test_parse_reads_any_config_class(tmp_path):
    assert parse(Toy, written(tmp_path, "filters: [1, 2]\n"), ["dropout=0"]) == Toy(
        filters=(1, 2), dropout=0
    )


def test_without_a_class_the_model_section_is_not_checked(minimal):
    assert load(minimal, ["model.anything.at_all=3"]).model == {"anything": {"at_all": 3}}


IRRELEVANT = [
    "training.steps=9",
    "training.epochs=9",
    "training.checkpoint_every=9",
    "training.validate_every=9",
    "training.grid_every=9",
    "training.grid_samples=9",
    "training.keep=9",
    "tracking.uri=http://localhost",
    "tracking.experiment=x",
    "tracking.register_models=false",
    "tracking.system_metrics=false",
    "data.root=x",
    "data.root=../x",
    "data.records=x",
    "data.split_file=x/split.json",
    "data.added.synthetic=x",
]
RELEVANT = [
    "name=other",
    "data.name=inbreast",
    "data.added.copies=3",
    "data.fold=1",
    "data.seed=1",
    "data.augment=false",
    "training.batch_size=2",
    "training.accumulate=2",
    "training.exchange=bfloat16",
    "training.seed=1",
    "training.precision=float32",
    "training.deterministic=true",
    "training.initial=x",
    "model.dropout=0",
    "model.filters=[4]",
    "model.learning_rate=2",
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
    [
        "name",
        "data",
        "data.root",
        "data.kinds",
        "training.steps",
        "model",
        "model.filters",
        "model.learning_rate",
        "x",
    ]
)
YAML_LIKE = st.text("0123456789abefnotxyz_-+.:!&*[]{}<>?%@`'\"|#,= \nT\\~", max_size=30)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
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


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=60) | YAML_LIKE.map(str.encode))
def test_no_file_raises_anything_but_a_config_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load(path, model=Toy)


def test_what_a_detector_sees_is_its_canvas_or_a_square():
    assert DataConfig(size=320).shape == (320, 320) and DataConfig(
        size=320, canvas=(1344, 800)
    ).shape == (1344, 800)


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


def test_a_key_that_stands_twice_is_refused(minimal, tmp_path):
    path = written(tmp_path, "data: {name: folder}\nmodel: {}\ndata: {size: 128}\n")
    assert sentence(path) == f"{path}: is not YAML (data is there twice)"
    override = "data={size: 64, size: 32}"
    assert sentence(minimal, override) == f"--set {override}: the value is not YAML"
    merged = written(tmp_path, "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n")
    assert read_yaml(merged) == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}}


def test_aliases_that_grow_beyond_bounds_are_refused(minimal, tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = written(tmp_path, "\n".join(levels))
    assert sentence(path) == (
        f"{path}: is not YAML (its aliases stand for more than 100,000 values)"
    )


def test_an_alias_of_itself_is_refused_in_little_memory(tmp_path):
    path = written(tmp_path, f"a: &a [{', '.join(['*a'] * 20_000)}]")
    tracemalloc.start()
    assert "its aliases stand for more than" in sentence(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_a_large_value_is_shown_in_a_few_words(minimal):
    digits = "f" * 5000
    told = sentence(minimal, f"data.size=-0x{digits}")
    assert told.endswith("(got a huge number)") and len(told) < 200
    told = sentence(minimal, f"training.precision={'x' * 5000}")
    assert len(told) < 250


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.size", 10**6), ("training.batch_size", 10**12), ("training.accumulate", 10**20)],
)
def test_numbers_beyond_any_machine_are_refused(minimal, key, value):
    told = sentence(minimal, f"{key}={value}")
    assert f"{key}: input should be less than or equal to" in told


@pytest.mark.parametrize("key", ["model.filters", "model.discriminator_filters"])
def test_layers_of_a_hundred_million_channels_are_refused(key):
    value = "[100000000]" if key == "model.filters" else "100000000"
    assert key in sentence(Path("can"), f"{key}={value}", model=CANConfig)


@pytest.mark.parametrize("key", ["model.learning_rate", "model.dropout", "model.limits.0"])
@pytest.mark.parametrize("value", ["1e300", "-3.5e38"])
def test_numbers_that_float32_cannot_hold_are_refused(minimal, key, value):
    override = f"model.limits=[{value}]" if "limits" in key else f"{key}={value}"
    assert key.removesuffix(".0") in sentence(minimal, override)
    largest = load(minimal, ["model.limits=[3.4028234e38]"], Toy).model.limits
    assert largest == (3.4028234e38,)

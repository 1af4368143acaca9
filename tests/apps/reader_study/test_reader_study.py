"""A reader study on small archives in native form and on synthetic sets made of them."""

import json
import re
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import eq, or_
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import stats

from tests.archives.writers import folder as writer
from tests.facts import read_csv
from tests.small_mammograms import draw_breast, make_mammogram
from tfmammo.apps.reader_study import __main__ as reader_study
from tfmammo.apps.reader_study import cases as reader_cases
from tfmammo.apps.reader_study.answers import Answers
from tfmammo.apps.reader_study.cases import Case, ReaderStudyConfig, Source, draw_cases
from tfmammo.apps.reader_study.results import ALL, FEW, compute_results, plot_roc, results_table
from tfmammo.apps.reader_study.session import ReaderStudy, parse_reader_name
from tfmammo.config import DataConfig, dump
from tfmammo.data.patches import Patches
from tfmammo.data.patients import PATIENTS
from tfmammo.errors import ConfigError, DataError
from tfmammo.mammogram import Lesion, hash_id
from tfmammo.metrics.summary import write_csv
from tfmammo.synthesis.config import SynthesisConfig
from tfmammo.synthesis.mammograms import synthesize

ROWS = 200
COLS = 150
OUTLINE = np.float32([[80, 30], [80, 50], [92, 56], [104, 50], [104, 30]])
SYSTEMS = ("normal", "all")  # whose mammograms they were made of


def mammogram(number):
    """Every second one has a mass, which begins its own outline's number of px lower."""
    image = draw_breast(number, ROWS, COLS)
    if number % 2 == 0:
        return make_mammogram(number, image, spacing=(0.1, 0.1), pathology="normal")
    outline = OUTLINE + [number % 5, 0]
    lesion = Lesion.from_outline("mass", outline, ROWS, COLS, pathology="benign")
    return make_mammogram(number, image, [lesion], spacing=(0.1, 0.1), pathology="benign")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """An archive of 60 patients, half of them with a mass, and two sets by Poisson editing."""
    root = tmp_path_factory.mktemp("archives")
    writer.write([mammogram(number) for number in range(60)], root / "real", bits=8)
    shutil.copytree(root / "real", root / "certain")
    table = read_csv(root / "real/metadata.csv")
    write_csv(root / "certain/metadata.csv", [{**row, "kind": "mass"} for row in table])
    data = DataConfig(name="folder", root=root / "certain")
    for mammograms in SYSTEMS:
        values = {"mammograms": mammograms, "renderer": "poisson", "count": 16, "seed": 3}
        synthesize(
            SynthesisConfig(name="some", data=data, format="png", **values), root / mammograms
        )
    return root


def make_config(archives, database, **values):
    """The config of a study of 2 x 8 cases."""
    real = DataConfig(name="folder", root=archives / "real", size=32, context=2, window=(0, 1))
    systems = {name: DataConfig(name="folder", root=archives / name) for name in SYSTEMS}
    numbers = {"pairs": 4, "ratings": 4, "samples": 200}
    defaults = {"name": "tiny", "real": real, "systems": systems, "database": database}
    return ReaderStudyConfig(**defaults | numbers | values)


@pytest.fixture
def config(archives, tmp_path):
    """A function (**values) -> the config of a study with its own database."""
    return partial(make_config, archives, tmp_path / "db/answers.sqlite")


@pytest.fixture(scope="module")
def database(archives, tmp_path_factory):
    """The config of a study with cases; its database is copied, and answers are added."""
    started = make_config(archives, tmp_path_factory.mktemp("started") / "answers.sqlite")
    ReaderStudy(started)
    return started


@pytest.fixture
def study(database, tmp_path):
    """A study without answers."""
    shutil.copy(database.database, tmp_path / "answers.sqlite")
    return ReaderStudy(database.model_copy(update={"database": tmp_path / "answers.sqlite"}))


def list_patients(sources, cases):
    """Whom cases show: tissue and lesion of a synthetic patch may be of two."""
    place = {
        name: dict(zip(source.patches.ids.tolist(), source.patients, strict=True))
        for name, source in sources.items()
    }
    shown = [place[name][patch] for case in cases for name, patch in case.shown]
    return [patient for patients in shown for patient in patients]


def decode(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def read(study, reader, right=lambda number: True, rate=lambda real: 6 if real else 1):
    """Answer every case."""
    for number, case in enumerate(study.cases(reader)):
        value = rate(case.truth == "real")
        if case.task == "choice":
            value = case.truth if right(number) else {"left": "right", "right": "left"}[case.truth]
        assert study.answer(reader, case, value, 1.5)


# Cases


@pytest.mark.slow
def test_cases_are_balanced_and_no_patient_is_shown_twice(study):
    cases = study.cases("Anna")
    assert sorted(case.number for case in cases) == list(range(1, 17))
    assert [case.task for case in cases] == ["choice"] * 8 + ["rating"] * 8
    for system in SYSTEMS:
        truths = [case.truth for case in cases if case.system == system]
        assert [truths.count(truth) for truth in ("real", "synthetic")] == [2, 2]
        assert truths.count("left") + truths.count("right") == 4
    sources = reader_cases.load_sources(study.config)
    everybody = list_patients(sources, cases)
    assert len(everybody) == len(set(everybody)) >= 8 + 8 + 8 + 8
    assert set(everybody) <= {hash_id("folder", f"p{number}") for number in range(60)}
    first, again, other = (
        draw_cases(study.config.model_copy(update={"seed": seed}), sources) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_patients_of_tissue_and_lesion_come_from_the_sets_tables(archives, study):
    """By annotations.json, which names the source, and metadata.csv."""
    sources = reader_cases.load_sources(study.config)["normal"]
    content = json.loads((archives / "normal/annotations.json").read_text())
    tissue = {image["file_name"]: image["patient"] for image in content["images"]}
    by_id = {
        hash_id("folder", row["file"][:-4]): {tissue[row["file"]], row["lesion_patient"]}
        for row in read_csv(archives / "normal/metadata.csv")
    }
    assert {len(shown) for shown in by_id.values()} == {2}
    assert [set(shown) for shown in sources.patients] == [
        by_id[name.partition("#")[0]] for name in sources.patches.ids.tolist()
    ]


def test_another_folder_has_its_own_patients(archives, config, tmp_path):
    shutil.copytree(archives / "real", tmp_path / "own")
    table = read_csv(tmp_path / "own/metadata.csv")
    donors = [{"lesion_patient": "p0" * row["file"].startswith("0")} for row in table]
    write_csv(tmp_path / "own/metadata.csv", list(map(or_, table, donors)))
    own = {"own": DataConfig(name="folder", root=tmp_path / "own")}
    sources = reader_cases.load_sources(config(systems=own))
    first = sources["own"].patients[0]
    assert first == sources["real"].patients[0] | {hash_id("folder", "p0")} and len(first) == 2


def test_nothing_shown_reveals_the_truth(study):
    pictures = [picture for case in study.cases("Anna") for picture in study.images(case)]
    decoded = list(map(decode, pictures))
    assert {(image.shape, image.dtype.name) for image in decoded} == {((32, 32), "uint8")}
    assert len({(len(picture), picture[:33]) for picture in pictures}) == 1
    chunks = {
        tuple(re.findall(rb"IHDR|IDAT|IEND|tEXt|tIME|eXIf|pHYs|gAMA", picture))
        for picture in pictures
    }
    assert chunks == {(b"IHDR", b"IDAT", b"IEND")}
    assert all(image.std() > 1 for image in decoded), "something is seen"


def test_sides_show_what_truth_says(study):
    """A pair's pictures, in the order of the truth, are of the archive and of the set."""
    sources = reader_cases.load_sources(study.config)
    for case in study.cases("Anna"):
        real, synthetic = ("real", case.real), (case.system, case.synthetic)
        shown = {
            "left": [real, synthetic],
            "right": [synthetic, real],
            "real": [real],
            "synthetic": [synthetic],
        }[case.truth]
        for image, (source, patch) in zip(map(decode, study.images(case)), shown, strict=True):
            patches = sources[source].patches
            expected = patches.images[patches.ids.tolist().index(patch), ..., 0]
            np.testing.assert_allclose(image / 255, expected, atol=0.5 / 255 + 1e-6)


def fake(shown):
    """A source without pixels. shown: whom each patch shows, a letter each."""
    count = len(shown)
    blank = np.zeros((count, 4, 4, 1))
    ids = np.array([f"{number}#0" for number in range(count)])
    return Source(
        Patches(blank.astype(np.float32), blank.astype(np.uint8), ids, ids),
        [frozenset(patients) for patients in shown],
    )


def test_a_coin_decides_each_side(config):
    """So that a reader who balances guesses is right as often as a binomial distribution says."""
    systems = {"made": config().systems["all"]}
    sources = {"real": fake("abcd"), "made": fake("efgh")}
    options = {"systems": systems, "pairs": 4, "ratings": 0}
    drawn = (draw_cases(config(seed=seed, **options), sources) for seed in range(400))
    guesses = ["left", "left", "right", "right"]
    rights = [sum(map(eq, [case.truth for case in cases], guesses)) for cases in drawn]
    expected = 400 * stats.binom.pmf(range(5), 4, 0.5)
    assert stats.chisquare(np.bincount(rights, minlength=5), expected).pvalue > 0.01


@pytest.mark.parametrize(
    ("real", "synthetic", "missing"),
    [
        (["a", "b", "c"], ["c", "d", "a"], None),  # d must be taken with a or c
        (["a", "a", "b", "c"], ["ca", "d", "e"], None),  # ca would leave b alone
        (["a", "b"], ["ca", "db", "cb"], r"\d of 2 for (real|made)"),
        (["a", "b", "c"], ["de", "ef"], "1 of 2 for made"),
    ],
)
def test_few_patients_suffice_if_any_selection_does(config, real, synthetic, missing):
    study_config = config(systems={"made": config().systems["all"]}, pairs=2, ratings=0)
    sources = {"real": fake(real), "made": fake(synthetic)}
    if missing:
        with pytest.raises(DataError, match=f"missing: {missing}"):
            draw_cases(study_config, sources)
        return
    everybody = list_patients(sources, draw_cases(study_config, sources))
    assert len(everybody) == len(set(everybody)) >= 4


# Answers


def test_a_reader_resumes(study):
    """In an order of the reader's own."""
    anna, ben = ([case.number for case in study.cases(reader)] for reader in ("Anna", "Ben"))
    assert anna != ben and sorted(anna) == sorted(ben)
    first = study.next("Anna")
    assert first == study.cases("Anna")[0] and study.answer("Anna", first, "left", 2.0)
    again = ReaderStudy(study.config)
    assert again.next("Anna") == study.cases("Anna")[1]
    assert again.next("Ben") == study.cases("Ben")[0]
    read(again, "Ben")
    assert again.next("Ben") is None and again.answers.is_unfinished()


def test_the_first_answer_counts(study):
    case = study.next("Anna")
    assert study.answer("Anna", case, "left", 1) and not study.answer("Anna", case, "right", 2)
    (kept,) = study.answers.all()
    assert (kept.reader, kept.value, kept.seconds, kept.case) == ("Anna", "left", 1.0, case)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", kept.time)


def test_a_bad_answer_is_refused(study):
    choice, *_, rating = study.cases("Anna")
    other = Case(99, "choice", "all", "left", "a", "b")
    wrong = [(choice, "up", 1), (choice, 3, 1), (rating, 0, 1), (rating, 7, 1), (rating, "١", 1)]
    wrong += [(choice, "left", float("nan")), (rating, 1, -1), (other, "left", 1)]
    for case, value, seconds in wrong:
        with pytest.raises(DataError, match="answer to case"):
            study.answer("Anna", case, value, seconds)
    assert study.answers.all() == []


def test_names_of_readers(study):
    case = study.next("Anna")
    for name in ("", "  ", "x" * 65, "a\nb", "a\x00", "\ud800", "=1+1", "@you", ALL):
        with pytest.raises(DataError, match="reader"):
            study.answer(name, case, "left", 1)
    names = ["Dr. Müller", "李", "O'Hara; DROP TABLE answers", "x" * 64]
    for name in names:
        assert parse_reader_name(f"  {name} ") == name and study.answer(name, case, "left", 1)
    assert [answer.reader for answer in study.answers.all()] == names


def test_a_reader_resumes_however_the_name_is_typed(study):
    case = study.next("José")
    assert study.answer("José", case, case.allowed[0], 1)
    for name in ("josé", " JOSE\u0301 "):
        assert study.find_reader(name) == "José"
    assert study.find_reader("Jose") == "Jose"


def test_eight_threads_lose_no_answer_and_store_none_twice(study):
    """Two of them are one reader: of each case one answer is."""

    def answer_all(number):
        reader = f"r{number % 7}"
        return sum(
            study.answer(reader, case, case.allowed[0], number) for case in study.cases(reader)
        )

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(answer_all, range(8)))
    assert sum(kept) == 7 * 16 and kept[0] + kept[7] == 16 and kept[1:7] == [16] * 6
    assert len(study.answers.all()) == 7 * 16 and not study.answers.is_unfinished()


def test_a_database_of_another_study_is_refused(study):
    for changed in ({"seed": 5}, {"name": "other"}, {"pairs": 2}):
        with pytest.raises(ConfigError, match="answers.sqlite"):
            ReaderStudy(study.config.model_copy(update=changed))
    shown = {"results": True, "show_results": True, "samples": 9, "level": 0.5}
    same = ReaderStudy(study.config.model_copy(update=shown))
    assert same.cases("Anna") == study.cases("Anna")


def test_other_files_are_refused_and_left_alone(config):
    study_config = config()
    study_config.database.parent.mkdir()
    study_config.database.write_text("no database at all, but long enough to look like something")
    with pytest.raises(ConfigError, match="database: "):
        ReaderStudy(study_config)
    study_config.database.unlink()
    with sqlite3.connect(study_config.database) as other:
        other.execute("CREATE TABLE runs (id)")
    other.close()
    before = study_config.database.read_bytes()
    with pytest.raises(ConfigError, match="belongs to another study"):
        ReaderStudy(study_config)
    assert study_config.database.read_bytes() == before
    study_config.database.write_bytes(b"")  # of a process that was killed at the start
    assert len(ReaderStudy(study_config).cases("Anna")) == 16


def test_other_pictures_are_refused(archives, config, tmp_path):
    shutil.copytree(archives / "all", tmp_path / "all")
    systems = config().systems | {"all": DataConfig(name="folder", root=tmp_path / "all")}
    ReaderStudy(config(systems=systems))
    assert ReaderStudy(config(systems=systems)), "where a set is does not matter"
    assert ReaderStudy(config())
    for path in (tmp_path / "all/images").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 2)
    with pytest.raises(DataError, match="other images"):
        ReaderStudy(config(systems=systems))


def test_the_database_holds_pseudonyms_alone(study, archives):
    read(study, "Anna")
    with sqlite3.connect(study.config.database) as database:
        text = "\n".join(database.iterdump())
    database.close()
    assert not re.search(r"\bp\d+\b", text) and str(archives) not in text and "Anna" in text


# Config


SET = {"name": "folder", "root": "x"}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"ratings": 3}, "ratings"),
        ({"pairs": 0, "ratings": 0}, "pairs and ratings"),
        ({"systems": {"real": SET}}, "systems: 'real'"),
        ({"systems": {"a": {"name": "folder"}}}, "systems.a: "),
        ({"systems": {"a": {"root": "x"}}}, "systems.a: "),
        ({"systems": {"a": SET | {"window": [0, 0.5]}}}, "systems.a.window"),
        ({"real": {"patches": "normal"}}, "real.patches"),
    ],
)
def test_bad_configs_name_the_key(config, values, key):
    with pytest.raises(ValueError, match=key):
        config(**values)


@pytest.mark.parametrize("damage", ["patients", "annotations"])
def test_damaged_sets_are_named(archives, config, tmp_path, damage):
    shutil.copytree(archives / "all", tmp_path / "set")
    study_config = config(systems={"made": DataConfig(name="folder", root=tmp_path / "set")})
    file = tmp_path / "set" / PATIENTS
    less = json.dumps(json.loads(file.read_text()) | {"mammograms": []})
    file.write_text(less if damage == "patients" else "[1]")
    with pytest.raises(DataError, match=r"set.*patients\.json"):
        ReaderStudy(study_config)


# Results


def test_results_are_those_of_the_answers(study):
    read(study, "Anna", right=lambda number: number != 0)
    read(study, "Ben", right=lambda number: number < 4, rate=lambda real: 4)
    results = {
        (result.system, result.reader): result
        for result in compute_results(study.config, study.answers)
    }
    assert set(results) == {
        (system, reader) for system in SYSTEMS for reader in ("Anna", "Ben", ALL)
    }
    for system in SYSTEMS:
        own = [answer for answer in study.answers.all() if answer.case.system == system]
        right = [
            [a.value == a.case.truth for a in own if a.case.task == "choice" and a.reader == name]
            for name in ("Anna", "Ben")
        ]
        assert results[system, "Anna"].choices is None, "four are too few"
        pooled = results[system, ALL]
        assert (pooled.choices.n, pooled.choices.right) == (8, np.sum(right))
        # eight answers, but to four pairs
        assert np.isnan([pooled.choices.p, pooled.choices.share.low]).all()
        assert results[system, "Anna"].ratings.area.value == 1
        assert results[system, "Ben"].ratings.area.value == 0.5
        assert pooled.ratings.area.value == 0.75
        assert (pooled.ratings.real, pooled.ratings.synthetic) == (4, 4)
    text = results_table(list(results.values()), "tiny").markdown()
    assert FEW in text and "(no interval)" in text and "nan" not in text.lower()
    (axes,) = plot_roc(study.config, study.answers).axes
    assert [line.get_label() for line in axes.get_lines()][1:] == list(SYSTEMS)


def test_p_is_corrected_for_the_systems_of_a_reader(config):
    """Holm doubles the smaller p: one system has eight right of eight, the other six."""
    study_config = config(pairs=8, ratings=0)
    cases = [
        Case(number, "choice", SYSTEMS[number % 2], "left", "r", "s") for number in range(1, 17)
    ]
    answers = Answers(study_config)
    answers.begin(cases, "hash")
    for reader in ("Anna", "Ben"):  # whose number of systems is no further correction
        for case in cases:
            answers.add(reader, case.number, "right" if case.number in (1, 3) else "left", 1)
    results = compute_results(study_config, answers)
    for reader in ("Anna", "Ben"):
        own = [result for result in results if result.reader == reader]
        assert [result.choices.p for result in own] == pytest.approx([2 / 256, 0.2890625])
        assert [result.p_corrected for result in own] == pytest.approx([4 / 256, 0.2890625])
    shown = results_table(own, "tiny")
    assert [line[4] for line in shown.body] == ["0.016", "0.289"] and "∞" in shown.body[0][3]
    assert "Holm's correction for 2 comparisons" in shown.notes[0]
    assert FEW in plot_roc(study_config, answers).axes[0].get_title()


# The command


@pytest.fixture
def command(study, tmp_path, monkeypatch, capsys):
    """A function (*arguments) -> (exit code, output), in a folder with the study's config."""
    (tmp_path / "study.yaml").write_text(dump(study.config))
    monkeypatch.chdir(tmp_path)
    # not console.width, whose undoing would leave it fixed for other tests
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code = 0
        try:
            reader_study.main(["--config", "study.yaml", *arguments])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_results_and_export_need_no_archive(study, command):
    read(study, "Anna", right=lambda number: number % 2)
    read(study, "Ben")
    gone = ["--set", "real.root=gone", "systems.all.root=gone", "systems.normal.root=gone"]
    code, said = command("results", "--output", "out", *gone)
    assert code == 0 and "Anna" in said and Path("out/roc.png").stat().st_size > 5000
    table = read_csv(Path("out/results.csv"))
    assert len(table) == 2 * 3 and table[0]["choices"] == ""
    assert table[2] | {"choices": "8", "auc": "1.0"} == table[2]
    assert "nan" not in Path("out/results.csv").read_text()
    code, said = command("export", *gone)
    answers = read_csv(Path("answers.csv"))
    assert code == 0 and len(answers) == 32
    assert {(row["study"], row["seconds"]) for row in answers} == {("tiny", "1.5")}
    for row in answers:
        if row["task"] == "choice":
            assert row["correct"] == str(int(row["answer"] == row["truth"])) and row["rating"] == ""
        else:
            expected = "6" if row["truth"] == "real" else "1"
            assert row["correct"] == "" and row["rating"] == row["answer"] == expected


def test_cases_are_drawn_and_what_is_missing_is_one_line(command):
    code, said = command("cases", "--set", "database=new/answers.sqlite")
    assert code == 0 and "16 cases" in said and Path("new/answers.sqlite").is_file()
    code, said = command("results", "--set", "database=none.sqlite")
    assert (code, said.count("\n")) == (2, 1) and "none.sqlite" in said
    code, said = command("export")
    assert code == 2 and "error: tiny" in said
    assert command("results")[0] == 0
    code, said = command("cases", "--output", "out")
    assert code == 2 and "--output: cases writes into `database` alone" in said

"""Promotion in a real SQLite store, of exports with known outputs, on a small archive."""

import json
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import mlflow
import numpy as np
import portalocker
import pytest

from tests.known_networks import KnownCAN
from tests.small_mammograms import write_discs
from tfmammo.apps.audit import verdict
from tfmammo.apps.registry import __main__ as registry
from tfmammo.apps.registry import promotion
from tfmammo.config import DataConfig, Experiment, TrackingConfig
from tfmammo.data import datasets
from tfmammo.evaluation.networks import Network
from tfmammo.tracking import models, runs
from tfmammo.tracking import store as store_module
from tfmammo.tracking.export import CARD, export
from tfmammo.tracking.store import store_uri

SIZE = 32
PATIENTS = 12
TRAINED = 4
MODEL = "tfmammo-tiny"
GOOD = 0.5
BAD = 0.3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CDD-CESM's form: twelve patients with two views each, a bright disc in noise."""
    root = tmp_path_factory.mktemp("archive")
    write_discs(root, PATIENTS)
    return DataConfig(name="cdd_cesm", root=root, size=SIZE)


@pytest.fixture(scope="module")
def patches(data):
    return datasets.load_all_patches(data)


@pytest.fixture(scope="module")
def patients(patches):
    return sorted(set(patches.patient_ids.tolist()))


@pytest.fixture(scope="module")
def exports(tmp_path_factory, data, patients):
    """Level -> an export with a training's card, trained on the first four patients."""
    card = {
        "config": {"data": data.model_dump(mode="json")},
        "train_patients": patients[:TRAINED],
        "git_commit": "c0ffee",
    }
    root = tmp_path_factory.mktemp("exports")
    return {
        level: export(KnownCAN("tiny", SIZE, level), root / str(level), card)
        for level in (GOOD, BAD)
    }


class Store:
    """A store in the current folder, and the run that registers versions in it."""

    def __init__(self, folder, exports):
        self.folder = folder
        self.exports = exports
        self.count = 0
        tiny = Experiment[dict](
            name="tiny", tracking=TrackingConfig(system_metrics=False), model={}
        )
        self.run = runs.Run(tiny, folder / "output")
        self.client = mlflow.MlflowClient(store_uri())

    def add(self, level, best=False, **card):
        """Register a version, as a training does; card: what is said in place of the export's; None
        leaves it out.
        """
        self.count += 1
        copy = self.folder / f"export{self.count}"
        shutil.copytree(self.exports[level], copy)
        known = json.loads((copy / CARD).read_text()) | card
        (copy / CARD).write_text(
            json.dumps({key: value for key, value in known.items() if value is not None})
        )
        assert self.run.register(copy, 10 * self.count, {"validation_dice": level}, best) == str(
            self.count
        )

    def best(self):
        aliases = self.client.get_registered_model(MODEL).aliases
        return int(aliases["best"]) if "best" in aliases else None

    def tags(self, version):
        """The audit, without its prefix."""
        tags = self.client.get_model_version(MODEL, str(version)).tags
        return {
            key.removeprefix("promotion."): value
            for key, value in tags.items()
            if key.startswith("promotion.")
        }


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store, exports):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return Store(tmp_path, exports)


def promote(*arguments, model=MODEL):
    """The command in this process -> its exit code."""
    return command("promote", "--model", model, *arguments)


def command(*arguments):
    try:
        registry.main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def dice(patches, level):
    """Of each patch, by the formula."""
    truth = patches.masks.astype(bool)
    output = patches.images >= level
    both = (truth & output).sum(axis=(1, 2, 3))
    sizes = truth.sum(axis=(1, 2, 3)) + output.sum(axis=(1, 2, 3))
    return 2 * both / sizes


def unseen(patches, patients):
    """The patches of the patients that none was trained on."""
    return patches.take(np.flatnonzero(np.isin(patches.patient_ids, patients[TRAINED:])))


def test_a_better_candidate_is_promoted_and_its_tags_say_why(store, patches, patients, capsys):
    store.add(BAD, best=True)
    store.add(GOOD)
    before = datetime.now(UTC)
    assert promote("--metric", "dice", "--min-gain", "0.005") == 0
    assert store.best() == 2
    tags = store.tags(2)
    new = unseen(patches, patients)
    gain = float(np.mean(dice(new, GOOD) - dice(new, BAD)))
    assert (tags["decision"], tags["against"], tags["metric"], tags["former"]) == (
        "promoted",
        "1",
        "dice",
        "1",
    )
    assert (tags["patients"], tags["images"]) == (
        str(PATIENTS - TRAINED),
        str(2 * (PATIENTS - TRAINED)),
    )
    assert gain > 0.05 and float(tags["gain"]) == pytest.approx(gain, rel=1e-5)
    # all eight patients gain, so 2 of 2^8 ways of signs are as far from 0
    assert float(tags["p"]) == 2 ** (1 - 8)
    low, high = json.loads(tags["interval"])
    assert 0 < low < gain < high < 1
    assert (tags["data"], tags["archive"]) == (new.fingerprint(), "cdd_cesm")
    assert (tags["min_gain"], tags["alpha"]) == ("0.005", "0.05")
    assert 0 <= (datetime.fromisoformat(tags["date"]) - before).total_seconds() + 0.001 < 60
    assert store.tags(1) == {"demoted_by": "2"}
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"{MODEL}: 16 patches of 8 patients (cdd_cesm) that neither was trained on" in said
        and f"{gain:+.4f}" in said
    )
    assert f"{dice(new, GOOD).mean():.4f}" in said and f"{dice(new, BAD).mean():.4f}" in said
    assert f"{MODEL}, version 2: promoted (a gain of" in said


@pytest.mark.parametrize(
    ("candidate", "arguments", "reason"),
    [
        (GOOD, ["--min-gain", "0.9"], "is less than 0.9"),
        (BAD, [], "it is no better: a gain of -"),
        (GOOD, ["--alpha", "0.005"], "p = 0.0078"),
    ],
)
def test_what_is_no_clear_gain_is_refused(store, capsys, candidate, arguments, reason):
    store.add(BAD if candidate == GOOD else GOOD, best=True)
    store.add(candidate)
    assert promote(*arguments) == 1
    assert store.best() == 1 and store.tags(1) == {}
    tags = store.tags(2)
    assert (tags["decision"], tags["against"]) == ("refused", "1") and reason in tags["reason"]
    assert not tags.keys() & {"former", "since"}
    assert "version 2: refused (" in capsys.readouterr().out


def test_equal_versions_are_no_gain_even_if_none_is_asked_for(store):
    store.add(GOOD, best=True)
    store.add(GOOD)
    assert promote("--min-gain", "0") == 1
    assert store.best() == 1 and store.tags(2)["gain"] == "0" and store.tags(2)["p"] == "1"


def test_few_patients_cannot_promote(store, patients, capsys):
    store.add(BAD, best=True)
    store.add(GOOD, train_patients=patients[:-3])
    assert promote() == 1
    assert (
        store.best() == 1
        and not {"p", "interval"} & store.tags(2).keys()
        and store.tags(2)["patients"] == "3"
    )
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "3 patients are fewer than 6; their p would be at least 0.25" in said and "nan" not in said
    )
    assert "No interval and no p: 3 patients are fewer than 6" in said


@pytest.mark.slow
def test_every_candidate_judged_on_the_same_patches_counts(store, capsys):
    """Eight patients give p = 0.0078, which is not below 0.01 for the second candidate."""
    store.add(BAD, best=True)
    store.add(GOOD)
    for _ in range(2):  # judged again, a candidate counts once
        assert promote("--min-gain", "0.9") == 1
    assert store.tags(2)["comparisons"] == "1"
    store.add(GOOD)
    assert promote("--alpha", "0.01") == 1
    tags = store.tags(3)
    assert (tags["comparisons"], float(tags["p"])) == ("2", 2 ** (1 - 8))
    assert "p = 0.0156 after 2 comparisons on these patches is not below 0.01" in tags["reason"]
    assert "Bonferroni's correction for 2 comparisons" in " ".join(capsys.readouterr().out.split())
    store.add(GOOD)
    assert promote("--alpha", "0.01") == 1 and store.tags(4)["comparisons"] == "3"
    assert promote("--candidate", "3", "--alpha", "0.03") == 0


def test_patients_of_either_training_are_left_out(store, patients):
    store.add(BAD, best=True, train_patients=patients[:2])
    store.add(GOOD, train_patients=patients[1:5])
    assert promote() == 0
    assert store.tags(2)["patients"] == "7"


def test_where_no_patient_is_new_to_both_a_sentence_says_so(store, patients, capsys):
    store.add(BAD, best=True, train_patients=patients[:6])
    store.add(GOOD, train_patients=patients[6:])
    assert promote() == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"error: models:/{MODEL}/2 and models:/{MODEL}/1: every patient of cdd_cesm was in the "
        "training data of one of them or both"
    )
    assert store.best() == 1 and store.tags(2) == {}


def test_the_first_becomes_the_best_unjudged(store, capsys):
    store.add(GOOD)
    assert promote() == 0
    assert store.best() == 1
    assert (
        store.tags(1).keys() == {"decision", "reason", "date", "since"}
        and store.tags(1)["decision"] == "first"
    )
    assert "version 1: first (no version was the best before)" in capsys.readouterr().out


def test_the_best_stays_without_a_new_audit(store, capsys):
    store.add(BAD)
    store.add(GOOD, best=True)  # by a training
    assert promote() == 0
    assert store.tags(2) == {}
    assert (
        "version 2: already best (nothing is done; no promotion is on record)"
        in capsys.readouterr().out
    )
    store.add(GOOD)
    promote("--candidate", "2")
    assert promote("--candidate", "3") == 1  # equal
    store.client.delete_registered_model_alias(MODEL, "best")
    assert promote("--candidate", "3") == 0
    before = store.tags(3)
    # of the refusal
    assert before["decision"] == "first" and not before.keys() & {"gain", "against", "p"}
    assert promote("--candidate", "3") == 0
    assert store.tags(3) == before and capsys.readouterr().out.endswith(
        "version 3: already best (nothing is done)\n"
    )


def while_judging(monkeypatch, happen):
    """Something else happens once, when both versions have been read and none has been moved."""
    run = Network.run
    done = []

    def interrupted(*arguments):
        if not done:
            done.append(True)
            happen()
        return run(*arguments)

    monkeypatch.setattr(Network, "run", interrupted)


def test_of_two_promotions_at_once_one_wins(store, monkeypatch):
    for level in (BAD, GOOD, GOOD):
        store.add(level, best=level == BAD)
    inner = []
    while_judging(monkeypatch, lambda: inner.append(promote("--candidate", "3")))
    assert promote("--candidate", "2") == 1
    assert inner == [0] and store.best() == 3
    assert store.tags(3)["decision"] == "promoted" and store.tags(1)["demoted_by"] == "3"
    tags = store.tags(2)
    assert (tags["decision"], tags["against"]) == ("refused", "1") and "former" not in tags
    assert tags["reason"] == "meanwhile the alias best moved from version 1 to version 3"


def test_a_first_version_does_not_replace_one_that_came_meanwhile(store, monkeypatch):
    store.add(GOOD)
    store.add(GOOD)
    opened = promotion.networks.open_network

    def late(*arguments):
        store.client.set_registered_model_alias(MODEL, "best", "1")  # a training's end
        return opened(*arguments)

    monkeypatch.setattr(promotion.networks, "open_network", late)
    assert promote() == 1
    assert (
        store.best() == 1
        and store.tags(2)["reason"] == "meanwhile the alias best moved from version - to version 1"
    )


def test_one_version_promoted_twice_at_once_keeps_its_audit(store, monkeypatch, capsys):
    store.add(BAD, best=True)
    store.add(GOOD)
    while_judging(monkeypatch, promote)
    assert promote() == 0
    assert store.best() == 2 and store.tags(2)["decision"] == "promoted"
    assert "version 2: already best (nothing is done)" in capsys.readouterr().out


def test_the_store_is_held_while_an_alias_moves(store):
    released = []
    path = store.folder / "mlflow.db.lock"
    held = threading.Event()

    def hold():
        with path.open("w") as file:
            portalocker.lock(file, portalocker.LOCK_EX)
            held.set()
            time.sleep(0.5)
            released.append(True)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    with store_module.open_registry(store_uri()):
        assert released
    other.join()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--candidate", "7"], f"models:/{MODEL}/7: no such version in sqlite:"),
        (["--metric", "hausdorff"], "metric: input should be 'dice', "),
        (["--min-gain", "-1"], "min_gain: input should be greater than or equal to 0"),
        (["--set", "gain=3"], "gain: unknown key"),
        (
            ["--set", "data.rooot=x"],
            f"data, with what the card of models:/{MODEL}/2 says: rooot: unknown key",
        ),
        (["--set", "data.root=nowhere"], "data.root: no such folder: nowhere"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (
            ["--tracking-uri", "sqlite:///nowhere.db"],
            "sqlite:///nowhere.db: there is no such store",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(store, capsys, arguments, sentence):
    store.add(BAD, best=True)
    store.add(GOOD)
    assert promote(*arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {sentence}")
    assert store.best() == 1 and store.tags(2) == {} and not (store.folder / "nowhere.db").exists()


def test_an_unknown_model_is_one_sentence(store, capsys):
    assert promote(model="tfmammo-other") == 2
    assert command("rollback", "--model", "tfmammo-other") == 2
    sentence = f"error: models:/tfmammo-other: no such registered model in {store_uri()}"
    assert capsys.readouterr().err.splitlines() == [sentence, sentence]
    store.client.create_registered_model("tfmammo-other")
    assert promote(model="tfmammo-other") == 2
    assert "models:/tfmammo-other/1: no such version in sqlite:" in capsys.readouterr().err


def test_versions_that_cannot_be_judged_are_named(store, patients, capsys):
    card = json.loads((store.exports[GOOD] / CARD).read_text())
    store.add(BAD, best=True)
    store.add(GOOD, train_patients=None)
    store.add(GOOD, functions={"generator": card["functions"]["generator"]}, serves="generator")
    for version, sentence in (
        (2, "its card does not name the patients of its training"),
        (3, "none of its functions leads from image to mask"),
    ):
        assert promote("--candidate", str(version)) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: models:/{MODEL}/{version}: ") and sentence in said
    shutil.rmtree(models.resolve(f"models:/{MODEL}/1") / "inverter")
    store.add(GOOD)
    assert promote() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: models:/{MODEL}/1: ")


def test_a_dry_run_writes_nothing(store, capsys):
    store.add(GOOD)
    assert promote("--dry-run") == 0 and store.best() is None and store.tags(1) == {}
    store.client.set_registered_model_alias(MODEL, "best", "1")
    store.add(BAD)
    assert promote("--dry-run") == 1 and store.tags(2) == {}
    store.client.set_registered_model_alias(MODEL, "best", "2")
    assert promote("--dry-run", "--candidate", "1") == 0
    assert store.best() == 2 and store.tags(1) == store.tags(2) == {}
    said = capsys.readouterr().out
    assert (
        "1: would be first" in said
        and "2: would be refused" in said
        and "1: would be promoted" in said
    )


def test_of_l1_less_is_better(store, patches, patients, capsys):
    store.add(GOOD, best=True)
    store.add(BAD)
    new = unseen(patches, patients)
    good, bad = (np.abs(new.images - (0.2 + level * new.masks)).mean() for level in (GOOD, BAD))
    better, other = (1, 2) if good < bad else (2, 1)
    store.client.set_registered_model_alias(MODEL, "best", str(other))
    assert promote("--metric", "l1", "--min-gain", "0.001", "--candidate", str(better)) == 0
    assert float(store.tags(better)["gain"]) == pytest.approx(abs(good - bad), rel=1e-4)
    assert "l1, less is better" in capsys.readouterr().out
    assert promote("--metric", "l1", "--candidate", str(other)) == 1
    assert float(store.tags(other)["gain"]) == pytest.approx(-abs(good - bad), rel=1e-4)


def test_a_config_file_and_what_stands_over_it(store, data, capsys, caplog):
    store.add(BAD, best=True)
    store.add(
        GOOD,
        config={
            "data": data.model_dump(mode="json")
            | {"root": "elsewhere", "records": "elsewhere", "added": {"copies": 3}}
        },
    )
    (store.folder / "mine.yaml").write_text("model: another\nmin_gain: 0.01\nmetric: mcc\n")
    mine = ["--config", "mine.yaml"]
    assert promote(*mine, "--dry-run") == 2  # the card's own records are not here
    assert "data.records: no such folder: elsewhere" in capsys.readouterr().err
    assert (
        promote(
            *mine,
            "--metric",
            "dice",
            "--set",
            f"data.root={data.root}",
            "data.context=2",
            "min_gain=0.95",
            "metric=l1",
        )
        == 1
    )
    tags = store.tags(2)
    assert (tags["min_gain"], tags["metric"]) == ("0.95", "dice")
    assert (
        f"models:/{MODEL}/1 was trained with data.context 1.3 and is evaluated with 2.0"
        in capsys.readouterr().err + caplog.text
    )


@pytest.mark.slow
def test_a_rollback_goes_back_step_by_step(store, capsys):
    for level in (BAD, GOOD):
        store.add(level)
        assert promote() == 0
    assert (
        store.tags(1)["demoted_by"] == "2"
        and "since" not in store.tags(1)
        and "since" in store.tags(2)
    )
    assert command("rollback", "--model", MODEL) == 0
    assert store.best() == 1 and capsys.readouterr().out.endswith(
        f"{MODEL}: best is version 1 again, after version 2\n"
    )
    assert (
        store.tags(2)["demoted_by"] == "1"
        and "rolled_back" in store.tags(2)
        and store.tags(2)["decision"] == "promoted"
    )
    assert "demoted_by" not in store.tags(1) and "since" in store.tags(1)
    assert command("rollback", "--model", MODEL) == 2
    assert f"models:/{MODEL}@best: version 1 in sqlite:" in capsys.readouterr().err
    assert promote() == 0  # once more
    assert store.best() == 2 and not store.tags(2).keys() & {"rolled_back", "demoted_by"}
    store.client.delete_model_version(MODEL, "1")
    assert command("rollback", "--model", MODEL) == 2 and store.best() == 2


def test_a_rollback_undoes_what_a_training_moved_so_that_it_can_be_judged(store, capsys):
    store.add(BAD)
    assert promote() == 0
    store.add(GOOD, best=True)  # a training's end
    assert command("rollback", "--model", MODEL) == 0
    assert store.best() == 1 and store.tags(2)["demoted_by"] == "1"
    assert promote() == 0
    assert (
        store.best() == 2 and store.tags(2)["former"] == "1" and "rolled_back" not in store.tags(2)
    )


def test_a_rollback_without_a_best_version_is_one_sentence(store, capsys):
    store.add(BAD)
    assert command("rollback", "--model", MODEL) == 2
    assert capsys.readouterr().err.startswith(f"error: models:/{MODEL}@best: no version in sqlite:")


@pytest.mark.parametrize("last", [1, 2])
def test_a_rollback_goes_to_the_version_that_was_promoted_last(store, last):
    for level in (BAD, GOOD, GOOD):
        store.add(level, best=True)
    for version in (1, 2):
        moment = f"2026-01-{10 + (version == last)}"
        store.client.set_model_version_tag(MODEL, str(version), "promotion.since", moment)
    assert command("rollback", "--model", MODEL) == 0 and store.best() == last


@pytest.mark.slow
def test_a_refusal_leaves_the_way_back(store):
    for level in (BAD, GOOD):
        store.add(level)
        promote()
    store.add(GOOD, best=True)  # by a training
    assert promote("--candidate", "2") == 1  # equal
    assert store.tags(2)["decision"] == "refused" and store.tags(2)["former"] == "1"
    assert command("rollback", "--model", MODEL) == 0 and store.best() == 2
    assert command("rollback", "--model", MODEL) == 0 and store.best() == 1


def test_the_list_shows_versions_aliases_metrics_and_verdicts(store, capsys):
    store.add(BAD, best=True)
    store.add(GOOD)
    promote()
    capsys.readouterr()
    assert command("list") == 0
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert [row[:5] for row in rows if row[0]] == [
        [MODEL, "2", "best", "20", "validation_dice 0.5"],
        [MODEL, "1", "", "10", "validation_dice 0.3"],
    ]
    audit = [row[5] for row in rows]
    assert {"decision promoted", "against 1", "demoted_by 2"} <= set(audit) and "c0ffee" not in str(
        rows
    )


@pytest.mark.long
def test_two_commands_at_once_as_they_are_typed(store):
    for level in (BAD, GOOD, GOOD):
        store.add(level, best=level == BAD)
    typed = [
        sys.executable,
        "-m",
        "tfmammo.apps.registry",
        "promote",
        "--model",
        MODEL,
        "--metric",
        "dice",
        "--min-gain",
        "0.005",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = {
        version: subprocess.Popen([*typed, "--candidate", str(version)], **pipes)
        for version in (2, 3)
    }
    said = {version: process.communicate(timeout=200) for version, process in both.items()}
    (winner,) = [version for version, process in both.items() if process.returncode == 0]
    assert both[5 - winner].returncode == 1, said
    assert store.best() == winner and f"version {winner}: promoted (" in said[winner][0]
    assert store.tags(5 - winner)["decision"] == "refused" and store.tags(1)["demoted_by"] == str(
        winner
    )


@pytest.mark.slow
def test_a_promotion_asks_for_the_audit_of_the_version_itself(store, tmp_path):
    store.add(GOOD)
    assert promote("--set", "audit=passed") == 1 and store.best() is None
    assert "there is none" in store.tags(1)["reason"]
    record = {"verdict": "passed", "bound": 0.55, "reason": "no attack succeeds", "date": "today"}
    version = f"models:/{MODEL}/1"
    assert verdict.write(record, version, tmp_path, None) == f"tags of {version}"
    assert promote("--set", "audit=passed") == 0 and store.best() == 1

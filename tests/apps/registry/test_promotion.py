"""Promotion in a real SQLite store, of exports with known outputs, on a small archive."""

import json
import shutil
import threading
import time
from functools import partial

import mlflow
import numpy as np
import portalocker
import pytest

from tests.known_networks import KnownCAN
from tests.small_mammograms import write_discs
from tfmammo.apps.audit import verdict
from tfmammo.apps.registry import __main__ as registry
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
    """Level -> an export with a run's card, trained on the first four patients."""
    card = {"config": {"data": data.model_dump(mode="json")}, "git_commit": "c0ffee"}
    card["train_patients"] = patients[:TRAINED]
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
        tracking = TrackingConfig(system_metrics=False)
        tiny = Experiment[dict](name="tiny", tracking=tracking, model={})
        self.run = runs.Run(tiny, folder / "output")
        self.client = mlflow.MlflowClient(store_uri())

    def add(self, level, best=False, **card):
        """Register a version, as a run does; card: what is said in place of the export's; None
        leaves it out.
        """
        self.count += 1
        copy = self.folder / f"export{self.count}"
        shutil.copytree(self.exports[level], copy)
        known = json.loads((copy / CARD).read_text()) | card
        content = {key: value for key, value in known.items() if value is not None}
        (copy / CARD).write_text(json.dumps(content))
        version = self.run.register(copy, 10 * self.count, {"validation_dice": level}, best)
        assert version == str(self.count)

    def best(self):
        aliases = self.client.get_registered_model(MODEL).aliases
        return int(aliases["best"]) if "best" in aliases else None

    def tags(self, version):
        """The decision's, without their prefix."""
        tags = self.client.get_model_version(MODEL, str(version)).tags
        prefix = "promotion."
        return {key[len(prefix) :]: tags[key] for key in tags if key.startswith(prefix)}


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store, exports):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return Store(tmp_path, exports)


def command(*arguments):
    """The command in this process -> its exit code."""
    try:
        registry.main(arguments)
    except SystemExit as end:
        return end.code
    return 0


promote = partial(command, "promote", "--model", MODEL)
rollback = partial(command, "rollback", "--model", MODEL)


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
    assert promote("--metric", "dice", "--min-gain", "0.005") == 0
    assert store.best() == 2
    tags = store.tags(2)
    new = unseen(patches, patients)
    gain = float(np.mean(dice(new, GOOD) - dice(new, BAD)))
    expected = {"decision": "promoted", "against": "1", "metric": "dice", "former": "1"}
    expected |= {"patients": "8", "images": "16", "data": new.fingerprint(), "archive": "cdd_cesm"}
    expected |= {"min_gain": "0.005", "alpha": "0.05"}
    assert tags | expected == tags
    assert gain > 0.05 and float(tags["gain"]) == pytest.approx(gain, rel=1e-5)
    # all eight patients gain, so 2 of 2^8 ways of signs are as far from 0
    assert float(tags["p"]) == 2 ** (1 - 8)
    low, high = json.loads(tags["interval"])
    assert 0 < low < gain < high < 1
    assert store.tags(1) == {}
    said = " ".join(capsys.readouterr().out.split())
    assert "16 patches of 8 patients" in said and f"{gain:+.4f}" in said
    assert f"{dice(new, GOOD).mean():.4f}" in said and f"{dice(new, BAD).mean():.4f}" in said
    assert f"{MODEL}, version 2: promoted (a gain of" in said


@pytest.mark.parametrize(
    ("candidate", "arguments", "reason"),
    [
        (GOOD, ["--min-gain", "0.9"], "0.9"),
        (BAD, [], "a gain of -"),
        (GOOD, ["--alpha", "0.005"], "p = 0.0078"),
    ],
)
def test_without_a_clear_gain_a_candidate_is_refused(store, capsys, candidate, arguments, reason):
    store.add(BAD if candidate == GOOD else GOOD, best=True)
    store.add(candidate)
    assert promote(*arguments) == 1
    assert store.best() == 1 and store.tags(1) == {}
    tags = store.tags(2)
    assert (tags["decision"], tags["against"]) == ("refused", "1") and reason in tags["reason"]
    assert not tags.keys() & {"former", "since"}
    assert "version 2: refused (" in capsys.readouterr().out


def test_few_patients_cannot_promote(store, patients, capsys):
    store.add(BAD, best=True)
    store.add(GOOD, train_patients=patients[:-3])
    assert promote() == 1
    assert store.best() == 1 and store.tags(2)["patients"] == "3"
    assert not {"p", "interval"} & store.tags(2).keys()
    said = " ".join(capsys.readouterr().out.split())
    assert "at least 0.25" in said and "nan" not in said


@pytest.mark.slow
def test_every_candidate_compared_on_the_same_patches_counts(store, capsys):
    """Eight patients give p = 0.0078, which is not below 0.01 for the second candidate."""
    store.add(BAD, best=True)
    store.add(GOOD)
    for _ in range(2):  # compared again, a candidate counts once
        assert promote("--min-gain", "0.9") == 1
    assert store.tags(2)["comparisons"] == "1"
    store.add(GOOD)
    assert promote("--alpha", "0.01") == 1
    tags = store.tags(3)
    assert (tags["comparisons"], float(tags["p"])) == ("2", 2 ** (1 - 8))
    assert "p = 0.0156 after 2 comparisons" in tags["reason"]
    assert "Bonferroni's correction for 2 comparisons" in " ".join(capsys.readouterr().out.split())
    store.add(GOOD)
    assert promote("--alpha", "0.01") == 1 and store.tags(4)["comparisons"] == "3"
    # which data another comparison of a version was on, and whether it still exists, is no matter
    assert promote("--candidate", "2", "--set", "data.frame=tight", "--min-gain", "0.9") == 1
    assert store.tags(2)["comparisons"] == "1"
    store.client.delete_model_version(MODEL, "4")
    assert promote("--candidate", "3", "--alpha", "0.03") == 0
    assert store.tags(3)["comparisons"] == "3"


def test_training_patients_of_either_version_are_excluded(store, patients):
    store.add(BAD, best=True, train_patients=patients[:2])
    store.add(GOOD, train_patients=patients[1:5])
    assert promote() == 0
    assert store.tags(2)["patients"] == "7"
    store.add(GOOD, train_patients=[*patients[:1], *patients[5:]])
    assert promote() == 2 and store.tags(3) == {}  # nobody is left


def test_the_best_stays_without_a_new_audit(store, capsys):
    store.add(BAD)
    store.add(GOOD, best=True)  # by a training run
    assert promote() == 0
    assert store.tags(2) == {}
    assert "version 2: already best" in capsys.readouterr().out
    store.add(GOOD)
    promote("--candidate", "2")
    assert promote("--candidate", "3") == 1  # equal
    store.client.delete_registered_model_alias(MODEL, "best")
    assert promote("--candidate", "3") == 0
    before = store.tags(3)
    # of the refusal
    assert before["decision"] == "first" and not before.keys() & {"gain", "against", "p"}
    assert promote("--candidate", "3") == 0 and store.tags(3) == before


def while_comparing(monkeypatch, happen):
    """Something else happens once, when both versions have been read and none has been moved."""
    run = Network.run

    def interrupted(*arguments):
        monkeypatch.setattr(Network, "run", run)
        happen()
        return run(*arguments)

    monkeypatch.setattr(Network, "run", interrupted)


def test_only_one_of_two_simultaneous_promotions_wins(store, monkeypatch):
    for level in (BAD, GOOD, GOOD):
        store.add(level, best=level == BAD)
    inner = []
    while_comparing(monkeypatch, lambda: inner.append(promote("--candidate", "3")))
    assert promote("--candidate", "2") == 1
    assert inner == [0] and store.best() == 3
    assert store.tags(3)["decision"] == "promoted" and store.tags(3)["former"] == "1"
    tags = store.tags(2)
    assert (tags["decision"], tags["against"]) == ("refused", "1") and "former" not in tags
    assert "from version 1 to version 3" in tags["reason"]


def test_one_version_promoted_twice_at_once_keeps_its_audit(store, monkeypatch, capsys):
    store.add(BAD, best=True)
    store.add(GOOD)
    while_comparing(monkeypatch, promote)
    assert promote() == 0
    assert store.best() == 2 and store.tags(2)["decision"] == "promoted"
    assert "version 2: already best" in capsys.readouterr().out


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
    ("arguments", "word"),
    [
        (["--candidate", "7"], f"models:/{MODEL}/7"),
        (["--metric", "hausdorff"], "metric"),
        (["--set", "data.rooot=x"], "rooot"),
        (["--set", "data.root=nowhere"], "data.root"),
        (["--tracking-uri", "sqlite:///nowhere.db"], "sqlite:///nowhere.db"),
        (["--model", "tfmammo-other"], "models:/tfmammo-other"),
    ],
)
def test_a_wrong_argument_is_named_in_one_sentence(store, capsys, arguments, word):
    store.add(BAD, best=True)
    store.add(GOOD)
    assert promote(*arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and word in said
    assert store.best() == 1 and store.tags(2) == {} and not (store.folder / "nowhere.db").exists()


def test_versions_that_cannot_be_compared_are_named(store, patients, capsys):
    card = json.loads((store.exports[GOOD] / CARD).read_text())
    store.add(BAD, best=True)
    store.add(GOOD, train_patients=None)
    store.add(GOOD, functions={"generator": card["functions"]["generator"]}, serves="generator")
    for version, word in ((2, "patients"), (3, "from image to mask")):
        assert promote("--candidate", str(version)) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: models:/{MODEL}/{version}: ") and word in said
    shutil.rmtree(models.resolve(f"models:/{MODEL}/1") / "inverter")
    store.add(GOOD)
    assert promote() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: models:/{MODEL}/1: ")


def test_a_dry_run_writes_nothing(store, capsys):
    store.add(GOOD)
    assert promote("--dry-run") == 0 and store.best() is None and store.tags(1) == {}
    store.add(BAD, best=True)
    assert promote("--dry-run", "--candidate", "1") == 0
    assert store.best() == 2 and store.tags(1) == store.tags(2) == {}
    said = capsys.readouterr().out
    assert "1: would be first" in said and "1: would be promoted" in said


def test_lower_l1_is_better(store, patches, patients, capsys):
    store.add(GOOD, best=True)
    store.add(BAD)
    new = unseen(patches, patients)
    good, bad = (np.abs(new.images - (0.2 + level * new.masks)).mean() for level in (GOOD, BAD))
    better, other = (1, 2) if good < bad else (2, 1)
    store.client.set_registered_model_alias(MODEL, "best", str(other))
    assert promote("--metric", "l1", "--min-gain", "0.001", "--candidate", str(better)) == 0
    assert float(store.tags(better)["gain"]) == pytest.approx(abs(good - bad), rel=1e-4)
    assert "lower is better" in capsys.readouterr().out
    assert promote("--metric", "l1", "--candidate", str(other)) == 1
    assert float(store.tags(other)["gain"]) == pytest.approx(-abs(good - bad), rel=1e-4)


def test_flags_override_set_and_set_overrides_the_file(store, data, capsys, caplog):
    store.add(BAD, best=True)
    own = {"root": "elsewhere", "records": "elsewhere", "added": {"copies": 3}}
    store.add(GOOD, config={"data": data.model_dump(mode="json") | own})
    (store.folder / "mine.yaml").write_text("model: another\nmin_gain: 0.01\nmetric: mcc\n")
    mine = ["--config", "mine.yaml"]
    assert promote(*mine, "--dry-run") == 2  # the card's own records do not exist
    assert "data.records" in capsys.readouterr().err
    overrides = [f"data.root={data.root}", "data.context=2", "min_gain=0.95", "metric=l1"]
    assert promote(*mine, "--metric", "dice", "--set", *overrides) == 1
    tags = store.tags(2)
    assert (tags["min_gain"], tags["metric"]) == ("0.95", "dice")
    assert "data.context 1.3" in capsys.readouterr().err + caplog.text


@pytest.mark.slow
def test_a_rollback_goes_back_step_by_step(store, capsys):
    for level in (BAD, GOOD):
        store.add(level)
        assert promote() == 0
    assert "since" not in store.tags(1) and "since" in store.tags(2)
    assert rollback() == 0
    assert store.best() == 1 and "version 1 again" in capsys.readouterr().out
    tags = store.tags(2)
    assert tags["decision"] == "promoted" and not tags.keys() & {"former", "since"}
    assert "since" in store.tags(1)
    assert rollback() == 2
    assert f"models:/{MODEL}@best: version 1" in capsys.readouterr().err
    assert promote() == 0  # once more
    assert store.best() == 2 and store.tags(2)["former"] == "1"
    store.client.delete_model_version(MODEL, "1")
    assert rollback() == 2 and store.best() == 2


@pytest.mark.parametrize("last", [1, 2])
def test_a_rollback_goes_to_the_version_that_was_promoted_last(store, last):
    for level in (BAD, GOOD, GOOD):
        store.add(level, best=True)
    for version in (1, 2):
        moment = f"2026-01-{10 + (version == last)}"
        store.client.set_model_version_tag(MODEL, str(version), "promotion.since", moment)
    assert rollback() == 0 and store.best() == last


@pytest.mark.slow
def test_a_refusal_leaves_the_way_back(store):
    for level in (BAD, GOOD):
        store.add(level)
        promote()
    store.add(GOOD, best=True)  # by a training run
    assert promote("--candidate", "2") == 1  # equal
    assert store.tags(2)["decision"] == "refused" and store.tags(2)["former"] == "1"
    assert rollback() == 0 and store.best() == 2
    assert rollback() == 0 and store.best() == 1


def test_the_list_shows_versions_aliases_metrics_and_decisions(store, capsys):
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
    assert {"decision promoted", "against 1"} <= set(audit)
    assert "c0ffee" not in str(rows)


@pytest.mark.slow
def test_a_promotion_may_require_the_audit_of_the_version_itself(store):
    store.add(GOOD)
    assert promote("--set", "audit=passed") == 1 and store.best() is None
    assert "audit=passed" in store.tags(1)["reason"]
    record = {"verdict": "passed", "bound": 0.55, "reason": "no attack succeeds", "date": "today"}
    verdict.write(record, f"models:/{MODEL}/1", None)
    assert promote("--set", "audit=passed") == 0 and store.best() == 1

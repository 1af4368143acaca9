"""Estimates of large builds and syntheses: measurements on tiny mammograms, and the arithmetic."""

import time

import pytest

from tests.commands import refuse
from tfmammo.apps import estimate
from tfmammo.apps.estimate import Rate
from tfmammo.config import DataConfig, dump
from tfmammo.data import build
from tfmammo.errors import DataError
from tfmammo.synthesis.config import SynthesisConfig


def test_a_million_mammograms_by_hand():
    rate = Rate(seconds=2, bytes=500, index=0.0036, part=16, sample=8)
    assert rate.count_parts(1_000_000) == 62_500
    # One hour of reading tables; 62,500 shards make 977 rounds of 64, each of 16 x 2 s.
    assert rate.estimate_hours(1_000_000, 64) == pytest.approx(1 + 977 * 32 / 3600)
    assert rate.estimate_hours(1_000_000, 1) == pytest.approx(1 + 2_000_000 / 3600)


@pytest.fixture
def built(tmp_path):
    """The config file of a build of five phantoms."""
    shards = build.ShardConfig(shard_mammograms=3)
    chosen = build.BuildConfig(name="tiny", data=DataConfig(phantoms=6, size=64), build=shards)
    (tmp_path / "build.yaml").write_text(dump(chosen), encoding="utf-8")
    return tmp_path / "build.yaml"


@pytest.mark.slow
def test_a_build_is_timed_and_weighed(built, tmp_path, monkeypatch):
    real = build.make

    def slow(shard):
        time.sleep(0.3 * len(shard.jobs))
        real(shard)

    monkeypatch.setattr(build, "make", slow)
    (tmp_path / "sample").mkdir()
    measure = estimate.RATES["build"]
    rate = measure(built, [], 5, tmp_path / "sample")
    assert (rate.part, rate.sample) == (3, 5) and 0.3 <= rate.seconds < 3 and 0 < rate.index < 1
    config = build.BuildConfig(name="tiny", data=DataConfig(phantoms=6, size=64))
    build.build(config, tmp_path / "whole")
    whole = sum(path.stat().st_size for path in (tmp_path / "whole").glob("shard-*"))
    assert 6 * rate.bytes == pytest.approx(whole, rel=0.35)  # not every phantom has as many masses
    list_work = build.list_work
    monkeypatch.setattr(build, "list_work", lambda *those: list_work(*those)[::2])
    (tmp_path / "half").mkdir()
    half = measure(built, [], 2, tmp_path / "half")
    assert half.part == 6 and half.bytes < 0.8 * rate.bytes, "every second one gives no patch"
    with pytest.raises(DataError, match="--sample 6"):
        measure(built, [], 6, tmp_path / "sample")


def test_the_command_prints_what_follows_from_the_rate(built, capsys, monkeypatch):
    given = Rate(seconds=1.5, bytes=262_144, index=0.0009, part=16, sample=2)
    monkeypatch.setitem(estimate.RATES, "build", lambda *_: given)
    numbers = ["--mammograms", "1,000,000", "--workers", "64", "--sample", "2"]
    estimate.main(["build", "--config", str(built), *numbers])
    said = capsys.readouterr().out
    assert "build of 1,000,000 mammograms" in said
    # 977 rounds of 24 s and 15 minutes; 1,500,000 s and 15 minutes.
    for expected in ("1.5 s, 262 kB", "62,500", "6.76", "416.92", "0.25", "262 GB"):
        assert expected in said, said


def test_wrong_arguments_and_files_are_one_line(capsys, tmp_path):
    for arguments, said in (
        (["build", "--config", str(tmp_path / "none.yaml")], "none.yaml"),
        (["build", "--config", "x", "--workers", "0"], "--workers"),
    ):
        assert said in refuse(capsys, estimate.main, arguments)


@pytest.mark.slow
def test_a_synthesis_is_timed_and_weighed(tiny_infilling, tmp_path, capsys, monkeypatch):
    weighed = []

    def measure(path, overrides, sample, folder):
        rate = estimate.measure_synthesis(path, overrides, sample, folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        weighed.append((sample + 1) * rate.bytes / size)
        return rate

    monkeypatch.setitem(estimate.RATES, "synthesis", measure)
    values = {"data": DataConfig(phantoms=8), "generator": str(tiny_infilling(padding=20))}
    values["sizes"] = {"height": (24, 4), "width": (20, 3), "correlation": 0.5}
    chosen = SynthesisConfig(name="tiny", format="png", feather=6, **values)
    (tmp_path / "synthesis.yaml").write_text(dump(chosen), encoding="utf-8")
    numbers = ["--mammograms", "100", "--workers", "2", "--sample", "2"]
    estimate.main(["synthesis", "--config", str(tmp_path / "synthesis.yaml"), *numbers])
    assert "synthesis of 100 mammograms" in capsys.readouterr().out
    assert weighed == [pytest.approx(1)], "one more mammogram warms up"
    assert [path.name for path in tmp_path.iterdir()] == ["synthesis.yaml"], "nothing is kept"

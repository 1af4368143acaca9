"""The pages: from rows alone, short, and true of the rows that are committed."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.apps.report.rows import difference, level, make_facts, repeats
from tfmammo.apps.report import facts, pages, rebuild
from tfmammo.apps.report.items import (
    FACT_KEYS,
    ITEMS,
    find_item,
    list_checks,
    read_checks,
)
from tfmammo.apps.report.verdicts import DISAGREE
from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics.printed import read_papers

# lines; of the other papers' pages 300
LONGEST = {"index.md": 150, "cgan.md": 345, "infilling.md": 305}
CLAIM = "The Dice coefficient of CAN is higher than that of U-Net."
# what the claim needs besides its own test
BEHIND = [
    *(difference(model, "centred disc", 9, 8, 10, 0.001) for model in ("CAN", "U-Net")),
    *repeats("runs", CAN=(90, 91), **{"U_Net": (88, 89)}),
]


@pytest.fixture(scope="module")
def results(repository):
    return repository / "docs/results"


@pytest.fixture(scope="module")
def committed(results):
    return rebuild.read_all(results)


@pytest.fixture(scope="module")
def files(results):
    return rebuild.build_files(results)


def test_committed_pages_are_what_committed_rows_say(results, files, committed, repository):
    for name, text in files.items():
        assert (results / name).read_text(encoding="utf-8") == text, name
    drawn = {path.name for path in (results / pages.CURVES).iterdir()}
    assert drawn == {name.rpartition("/")[2] for name in files if name.endswith(".svg")}
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert rebuild.build_readme(readme, committed) == readme
    assert set(committed) <= set(FACT_KEYS) and "can_inbreast" in committed
    assert len(committed) >= 15


def test_pages_are_short_and_their_lines_too(files):
    texts = {name: text for name, text in files.items() if name.endswith(".md")}
    assert set(texts) == {"index.md", *(f"{paper}.md" for paper in read_papers())}
    for name, text in texts.items():
        lines = text.splitlines()
        assert len(lines) <= LONGEST.get(name, 300), name
        assert not [line for line in lines if len(line) > 120 and not line.startswith("|")], name
        tables = text.replace("\n\n", "\n\0\n").split("\0")
        rows = [part.count("\n|") - 2 for part in tables if "\n| --- " in part]
        assert max(rows, default=0) <= 10, name


def test_another_process_rebuilds_the_same_bytes_without_tensorflow(results, repository, files):
    script = """
import sys
from pathlib import Path
from tfmammo.apps.report import rebuild
files = rebuild.build_files(Path(sys.argv[1]))
assert not {"tensorflow", "keras", "mlflow", "matplotlib"} & set(sys.modules)
sys.stdout.write("\\0".join(f"{name}\\n{text}" for name, text in files.items()))
"""
    command = [sys.executable, "-c", script, str(results)]
    made = subprocess.run(command, cwd=repository, capture_output=True, check=True, timeout=60)
    here = "\0".join(f"{name}\n{text}" for name, text in files.items())
    assert made.stdout.decode() == here and len(here) > 10_000


def test_every_item_and_printed_claim_has_its_place(files):
    keys = [f"{paper}_{name}" for paper, one in read_papers().items() for name in one.items]
    assert [item.key for item in ITEMS if not item.study] == keys and len(keys) == 33
    for item in ITEMS:
        text = files[f"{item.paper}.md"]
        assert text.count(f"\n## {item.printed.label}\n") == 1, item.key
        for claim in item.claims:
            assert " ".join(claim.says.split()) in " ".join(text.split()), item.key


def test_the_words_of_the_first_page_agree_with_its_rows(committed):
    """Its sentences are written by hand; these are the facts that they state."""

    def find(item, *key, **keys):
        return committed[item].find(*key, **keys)

    assert find("adversary", "cGAN without adversary", "dice", "cGAN").low > 0
    runs = [
        committed["adversary"].find_repeats("runs", name, "dice").values()
        for name in ("cGAN without adversary", "cGAN")
    ]
    assert min(runs[0]) > max(runs[1]) and len(runs[0]) == len(runs[1]) == 3
    can, unet = (
        committed["can_table1"].find_repeats("runs", name, "dice").values()
        for name in ("CAN", "U-Net")
    )
    assert min(can) < max(unet), "CAN and the U-Net do not differ in every run"
    assert (
        find("infilling_table1", "G_crn", "kid").high
        < find("infilling_table1", "G_unet", "kid").low
    )
    assert find("flow", "G_unet", "kid").value < find("flow", "G_crn", "kid").value
    assert find("flow", "flow", "kid", "G_unet").p_corrected < 0.05, "KID prefers a GAN"
    assert find("flow", "flow", "lpips").value < find("flow", "G_unet", "lpips").value
    assert find("flow", "flow", "ms_ssim").high < find("flow", "G_unet", "ms_ssim").low
    attacks = {"table": "attacks", "subset": "attack=loss"}
    assert find("audit", "infilling", "success", **attacks).low > 0.6, "it leaks"
    on_can = [
        row for row in committed["audit"].rows if (row.model, row.measure) == ("can", "success")
    ]
    strongest = max(on_can, key=lambda row: row.value)
    assert strongest.subset == "attack=nearest, Inception" and strongest.low < 0.5 < strongest.high
    assert find("contextual_table1", "share50", "auc", "share0").p_corrected > 0.05
    assert find("infilling_table1", "G_unet", "lpips", "G_unet-").p_corrected > 0.05  # the margin


def test_printed_numbers_have_the_papers_decimals(files):
    """The review has "about 0.8" and "80%"; 0.800 and 80.0 would be other statements."""
    assert "| Shape CNN | 0.954 | 0.8 | 0.011 |" in files["cgan.md"]
    assert re.search(r"\| Shape CNN \| 82\.3 \[[^]]*\] \| 80 \|", files["cgan.md"])
    assert "| 91.0 |" in files["can.md"] and "| 0.829 |" in files["contextual.md"]


def test_counts_of_patches_have_neither_sign_nor_decimals(files):
    text = " ".join(files["contextual.md"].split())
    assert "patches lesions: 121 false alarms are new and 60 are gone" in text


def test_a_placeholder_is_a_row_with_its_interval():
    rows = rebuild.Placeholder(
        make_facts(level("CAN", 89.2, 87.8, 90.4), difference("CAN", "disc", 4, p=0.002))
    )
    assert f"{rows:CAN|dice}" == "89.2 [87.8, 90.4] %"
    assert f"{rows:CAN|dice|against=disc|p}" == "+4.0 points, p = 0.002"
    assert f"{rows:CAN|mcc}" == f"{rebuild.Placeholder(None):CAN|dice}" == rebuild.UNKNOWN


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([difference("CAN", "U-Net", 2, 1, 3, 0.001)], ["holds", "U-Net"]),
        (
            [difference("CAN", "U-Net", 2, -1, 5, 0.2)],
            ["not decided", "detectable difference, uncorrected: 4.3 points"],
        ),
        ([], ["not tested"]),
    ],
)
def test_a_claim_in_words(rows, words):
    found = make_facts(*rows, *BEHIND)
    (evidence,) = [
        one
        for one in pages.judge_item(find_item("can_table1"), {"can_table1": found})
        if one.says == CLAIM
    ]
    text = " ".join(" ".join(pages.describe_claim(evidence)).split())
    assert text.lower().startswith(f"- **{words[0]}**") and all(
        word in text.lower() or word in text for word in words
    )
    assert ("a substitute for the paper's data" in text) == bool(rows)


def test_the_summary_counts_claims_and_names_decided_ones():
    found = make_facts(difference("CAN", "U-Net", 2, 1, 3, 0.001), *BEHIND)
    text = rebuild.build_index({"can_table1": found})
    text = " ".join(text.split())
    assert "40 claims that can be tested with numbers: 1 holds, 39 were not tested." in text
    assert "Of 5 further tests of ours 5 were not tested." in text
    assert "| [CAN](can.md) | 5 | 1 | 0 | 0 | 0 | 4 | 12 facts |" in text
    assert "| [Contextual GAN, our tests](contextual.md) | 5 | 0 | 0 | 0 | 0 | 5 | - |" in text
    assert f"| CAN | {CLAIM.rstrip('.')} | **holds**, moderate certainty |" in text


def test_the_texture_of_fig_5_is_judged_where_its_difference_was_computed(committed, files):
    """On CDD-CESM, whose table the page shows, it was not."""
    names = "G_crn", "haar_mass", "G_crn-"
    row = committed["lpips"].find(*names)
    assert row and committed["infilling_table1"].find(*names) is None
    (evidence,) = pages.judge_item(find_item("infilling_fig5"), committed)
    assert evidence.facts is committed["lpips"] and evidence.p == row.p_corrected > 0.05
    assert "Fine texture in the mass +0.00" in " ".join(files["infilling.md"].split())


def test_a_reason_takes_the_place_of_a_result():
    withdrawn = {"can_fig2": make_facts(item="can_fig2", reason="a wrong seed")}
    (evidence,) = pages.judge_item(find_item("can_fig2"), withdrawn)
    assert (evidence.word, evidence.why, evidence.detail) == (
        "not tested",
        pages.NO_RESULT,
        "a wrong seed",
    )
    assert "**Not tested**: a wrong seed." in pages.build_page("can", withdrawn)
    assert "private data" in pages.build_page("infilling", {})


def test_the_papers_data_decide_before_a_substitute():
    opposite = repeats("runs", CAN=(1, 2), **{"U_Net": (3, 4)})
    against = (difference("CAN", "U-Net", -2, -3, -1, 0.001), *BEHIND[:2], *opposite)
    papers = make_facts(*against, data="INbreast")
    substitute = make_facts(difference("CAN", "U-Net", 2, 1, 3, 0.001), *BEHIND)
    item = find_item("can_table1")
    for first, word, source in ((papers, "does not hold", papers), (make_facts(), "holds", None)):
        found = {"can_inbreast": first, "can_table1": substitute}
        (evidence,) = (one for one in pages.judge_item(item, found) if one.says == CLAIM)
        assert evidence.word == word and evidence.facts is (source or substitute)
    found = {"can_inbreast": make_facts(*against, data="VinDr"), "can_table1": substitute}
    (evidence,) = (one for one in pages.judge_item(item, found) if one.says == CLAIM)
    assert evidence.why == DISAGREE and evidence.detail.startswith("CBIS-DDSM: ")


def test_a_picture_is_linked_where_its_file_exists():
    found = {"can_table1": make_facts(level("CAN", 89.2))}
    link = "![Table I](pictures/can_table1.jpg)"
    page = pages.build_page("can", found, {"can_table1": ("Outlines.", "Some archive")})
    assert f"{link}\n\n*Outlines.*" in page and "Some archive" in page
    assert link not in pages.build_page("can", found)


def test_a_page_names_no_file_that_is_missing(results, files):
    for name, text in files.items():
        for file in re.findall(r"[\w.]+\.csv", text if name.endswith(".md") else ""):
            assert list(results.rglob(file)), f"{name}: {file}"


def test_a_paragraph_shows_rows_of_its_item_or_is_left_out():
    row = replace(difference("share50", "share0", 0.1), table="moves", unit="")
    measures = ("score_of_missed", "score_of_lesions", "new_false_alarms", "false_alarms_gone")
    moves = [replace(row, measure=measure) for measure in measures]
    other = {"model": "share0", "subset": "run=another_seed", "value": 0.2}
    moves.append(replace(moves[0], **other))
    pages_of = [
        pages.build_page("contextual", {"contextual_table1": make_facts(*found)})
        for found in (moves, moves[:4], [])
    ]
    assert "+0.100" in pages_of[0] and "+0.200" in pages_of[0]
    assert not [text for text in pages_of[1:] if "+0.100" in text or "{rows" in text]
    assert "{rows" not in pages.build_page("contextual", {})


def test_no_paragraph_of_the_committed_pages_is_left_out(committed, files):
    """A row that an item's text names wrongly would take the whole paragraph with it."""
    text = " ".join(" ".join(files.values()).split())
    for item in ITEMS:
        if pages.list_sources(item, committed) and item.text:
            first, *_ = item.text.partition("{rows")
            assert " ".join(first.split()) in text, item.key


def test_pages_are_written_and_old_curves_go(config, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{rebuild.BEGIN}\nold\n{rebuild.END}\nb\n")
    own = config.model_copy(update={"results": tmp_path / "results", "readme": readme})
    with pytest.raises(ConfigError, match=r"^results: .*results: no such folder"):
        rebuild.write_pages(own, "small", tmp_path)
    facts.write(make_facts(level("CAN", 89.2)), own.results)
    (own.results / pages.CURVES).mkdir()
    (own.results / pages.CURVES / "old.svg").touch()
    assert rebuild.write_pages(own, "small", tmp_path) == [f"pages: {own.results / 'index.md'}"]
    assert [path.name for path in (own.results / pages.CURVES).iterdir()] == [
        "can_table1.small.svg"
    ]
    assert readme.read_text().startswith(f"a\n{rebuild.BEGIN}\n\n- ")
    readme.write_text("no marks")
    with pytest.raises(DataError, match="readme: it needs the lines"):
        rebuild.write_pages(own, "small", tmp_path)


def test_every_verified_fact_names_an_item_and_a_test_that_exists(repository):
    known = {*read_papers(), *(item.key for item in ITEMS)}
    for check in read_checks():
        assert check.item in known, check
        place, _, function = check.test.partition("::")
        path = repository / place
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        wanted = re.compile(rf"^def {function}\w*\(", re.MULTILINE)
        assert any(wanted.search(file.read_text(encoding="utf-8")) for file in files), check
    for paper in read_papers():
        found = list_checks({paper})
        assert len(found) >= 3 and any("descends" in check.what for check in found), paper

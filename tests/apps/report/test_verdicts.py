"""The rule of verdicts, by facts made by hand."""

from dataclasses import replace

import pytest

from tfmammo.apps.report import items, verdicts
from tfmammo.apps.report.verdicts import Evidence, Floor, Gain, Level, Order, judge_claim
from tfmammo.document import TableFacts

DISC = Floor("disc", "Dice*")
PRINTED = {"CAN": {"dice": 91.7}}
CLAIM = Order("CAN beats U-Net.", "CAN", "U-Net", "Dice*")


def tabulate(title, **cells):
    return TableFacts(title=title, header=("", "Dice, %"), body=list(cells.items()))


def compare(**cells):
    """Tables of differences from CAN, whose order is that of every fold."""
    is_above = cells.get("U-Net", "").startswith("+")
    unet = "90.0, 90.1, 92.0" if is_above else "88.0, 89.9, 90.0"
    folds = tabulate("Means in each fold, unseen", **{"CAN": "89.0, 90.0, 91.0", "U-Net": unet})
    return [tabulate("Differences from CAN", **cells), folds]


def judge(claim, tables, floor=None, scale="small"):
    return judge_claim(claim, tables, PRINTED, floor, scale).word


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ("-2.0 [-3.0, -1.0] p = 0.010", "reproduced"),
        ("+2.0 [+1.0, +3.0] p = 0.010", "contradicted"),
        ("-2.0 [-3.0, -1.0] p = 0.060", "undecided"),  # p decides, not the interval
        ("-2.0 [-3.0, -1.0]", "reproduced"),
        ("-2.0 [-5.0, +1.0]", "undecided"),
        ("-2.0", "undecided"),
    ],
)
def test_a_test_decides_an_order(cell, word):
    assert judge(CLAIM, compare(**{"U-Net": cell})) == word


def test_a_smaller_value_may_be_the_better_one():
    lower = Order("CAN has fewer defects.", "CAN", "U-Net", "Dice*", higher=False)
    assert judge(lower, compare(**{"U-Net": "+2.0 p = 0.010"})) == "reproduced"


@pytest.mark.parametrize(
    ("can", "unet", "word"),
    [
        ("89.1, 89.4, 89.2", "88.0, 89.0, 87.0", "reproduced"),
        ("89.1, 89.4, 89.1", "89.2, 87.8, 89.2", "undecided"),
        ("89.1, 89.4, 89.2", "88.0, 89.1, 87.0", "undecided"),
        ("89.1, 89.4, 89.2", "90.0, 91.1, 89.5", "undecided"),  # apart, against the difference
        ("89.1", "89.2, 87.8", "reproduced"),  # the folds decide
    ],
)
def test_each_training_must_be_better_than_each_of_the_other(can, unet, word):
    title = "Dice of each training, %"
    body = [("CAN", can, "0.1"), ("U-Net", unet, "0.8")]
    trainings = TableFacts(title=title, header=("", "mean", "deviation"), body=body)
    tables = [*compare(**{"U-Net": "-0.5 p = 0.004"}), trainings]
    assert judge(CLAIM, tables) == word
    reason = judge_claim(CLAIM, tables, PRINTED, None, "small").reason
    assert reason.endswith(f"; trainings overlap: {can} and {unet}") == (word == "undecided")


def test_a_gain_is_excluded_only_where_trainings_agree():
    claim = Order("CAN beats U-Net.", "CAN", "U-Net", "Dice*", printed="dice")
    printed = {"CAN": {"dice": 91.7}, "U-Net": {"dice": 90.5}}
    levels = TableFacts(title="", header=("", "Dice, %"), body=[("U-Net", "88.7 [87.3, 90.0]")])
    tables = [levels, *compare(**{"U-Net": "-0.5 [-0.8, -0.2] p = 0.004"})]
    for can, ending in (("89.1, 89.4", "excluded"), ("87.1, 89.4", "excluded for these trainings")):
        trainings = TableFacts(
            title="Dice of each training, %",
            header=("", "mean", "deviation"),
            body=[("CAN", can, "0.1"), ("U-Net", "88.0, 87.8", "0.8")],
        )
        gain = judge_claim(claim, [*tables, trainings], printed, None, "small").gain
        assert gain.endswith(f": {ending}")


def test_models_that_were_trained_once_decide_no_order():
    tables = compare(**{"U-Net": "-2.0 p = 0.001"})
    assert judge(CLAIM, tables) == "reproduced"
    once = judge_claim(CLAIM, tables[:1], PRINTED, None, "small")
    assert once.word == "undecided"
    assert once.reason.endswith("; one training each, or not known how each does")


def test_other_trainings_of_one_network_would_change_both_of_its_answers():
    claim = replace(CLAIM, is_one_network=True)
    assert judge(claim, compare(**{"U-Net": "-2.0 p = 0.001"})[:1]) == "reproduced"


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ("model.weights=vgg16.h5", "reproduced"),
        ("'model.weights=a folder/vgg16.h5'", "reproduced"),
        ("model.weights=none", "undecided"),
        ("", "undecided"),
    ],
)
def test_a_network_that_lacks_its_papers_start_decides_no_order(weights, word):
    claim = replace(CLAIM, pretrained="train/unet.py", printed="dice")
    printed = {"CAN": {"dice": 91.7}, "U-Net": {"dice": 90.5}}
    levels = TableFacts(title="", header=("", "Dice, %"), body=[("U-Net", "88.7 [87.3, 90.0]")])
    tables = [levels, *compare(**{"U-Net": "-2.0 [-3.0, -1.0] p = 0.010"})]

    def judge_with(*commands):
        return judge_claim(claim, tables, printed, None, "small", commands=commands)

    can = "python train/can.py --set model.weights=vgg16.h5"
    unet = "python train/unet.py --config configs/unet.yaml --set data.fold={} " + weights
    evidence = judge_with(can, unet.format(0), unet.format(1))
    assert evidence.word == word
    assert bool(evidence.gain) == (word == "reproduced")
    assert ("random weights" in evidence.reason) == (word == "undecided")
    # each training must have the start, and it must be known
    assert judge_with(can, unet.format(0), "python train/unet.py").word == "undecided"
    assert judge_with(can).word == "undecided"
    elsewhere = "# unet, trained on somebody's GPU, as: " + unet.format(0)
    assert judge_with(can, elsewhere).word == word


def test_fcn8s_and_segnet_are_the_papers_only_with_imagenets_weights():
    for key, model in (("can_table1", "CAN"), ("cgan_table", "cGAN")):
        starts = {
            (claim.better, claim.worse): claim.pretrained for claim in items.find_item(key).claims
        }
        assert starts == {
            (model, "FCN-8s"): "train/fcn8s.py",
            (model, "SegNet"): "train/segnet.py",
            (model, "U-Net"): "",
        }


@pytest.mark.parametrize(
    ("can", "word"),
    [
        ("89.1, 89.4, 89.2", "reproduced"),
        ("89.1, 87.8, 89.2", "undecided"),
        ("87.1, 87.4, 86.2", "undecided"),  # in every fold, against the difference
        ("89.1, 89.4, -", "undecided"),
        ("-, -, -", "undecided"),
    ],
)
def test_an_order_must_hold_in_every_fold(can, word):
    folds = tabulate("Means in each fold", **{"CAN": can, "U-Net": "88.0, 88.0, 87.0"})
    tables = [*compare(**{"U-Net": "-0.5 p = 0.004"})[:1], folds]
    evidence = judge_claim(CLAIM, tables, PRINTED, None, "small")
    assert evidence.word == word
    if can == "89.1, 87.8, 89.2":
        assert evidence.reason.endswith(
            "; not in every fold: 89.1, 87.8, 89.2 and 88.0, 88.0, 87.0"
        )


@pytest.mark.parametrize(
    ("cell", "higher", "gain"),
    [
        ("-0.5 [-0.8, -0.2] p = 0.060", True, "1.3 %, ours 0.2 to 0.9 %: excluded"),
        ("-0.5 [-1.5, +0.5] p = 0.600", True, "1.3 %, ours -0.6 to 1.7 %: included"),
        ("+0.5 [-0.8, +1.8] p = 0.600", True, "1.3 %, ours -2.0 to 0.9 %: excluded"),
        ("+2.0 [+1.0, +3.0] p = 0.010", False, "-1.3 %, ours 1.1 to 3.4 %: excluded"),
        ("-0.5 p = 0.060", True, ""),  # no interval
    ],
)
def test_a_printed_gain_is_within_our_interval_or_not(cell, higher, gain):
    claim = Order("CAN beats U-Net.", "CAN", "U-Net", "Dice*", higher, printed="dice")
    levels = TableFacts(title="", header=("", "Dice, %"), body=[("U-Net", "88.7 [87.3, 90.0]")])
    printed = {"CAN": {"dice": 91.7}, "U-Net": {"dice": 90.5}}
    tables = compare(**{"U-Net": cell})
    assert judge_claim(claim, [levels, *tables], printed, None, "small").gain == gain
    assert judge_claim(claim, tables, printed, None, "small").gain == ""
    nothing = levels.model_copy(update={"body": (("U-Net", "0.0 [0.0, 0.0]"),)})
    assert judge_claim(claim, [nothing, *tables], printed, None, "small").gain == ""
    # a claim without printed values has none, and no other rule takes it away
    assert judge_claim(CLAIM, [levels, *tables], printed, None, "small").gain == ""
    assert judge_claim(claim, [levels, *tables], printed, None, "smoke").gain == gain


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_what_was_not_measured_is_not_attempted(scale):
    tables = compare(SegNet="-2.0 p = 0.010")
    gain = Gain("A detector gains.", "real + 2 by can", "merit", "Differences from real")
    level = Level("It is reached.", "CAN", "IoU", ("CAN", "dice"))
    for claim in (CLAIM, gain, level):
        for facts in (tables, []):
            evidence = judge_claim(claim, facts, PRINTED, DISC, scale)
            assert evidence.word == "not attempted" and not evidence.is_decided, claim


GROWTH = "Differences in recall from real + 4 copies, which synthetic ones join"


@pytest.mark.parametrize(
    ("cell", "p", "word"),
    [
        ("+0.030 [+0.010, +0.050]", "0.010", "contradicted"),
        ("+0.030 [-0.010, +0.070]", "0.200", "undecided"),  # no proof that there is none
        ("-0.030 [-0.050, -0.010]", "0.010", "reproduced"),
    ],
)
def test_that_nothing_is_gained_is_contradicted_by_a_gain(cell, p, word):
    body = [("real + 2 copies", "-0.1", "0.001"), ("real + 8 copies", cell, p)]
    body.append(("real + 4 copies + 4 by unet", "+0.1", "0.001"))
    table = TableFacts(title=GROWTH, header=("", "JAFROC figure of merit", "p, Holm"), body=body)
    claims = items.find_item("infilling_fig6").claims
    (claim,) = [claim for claim in claims if claim.is_absent]
    assert judge(claim, [table]) == word


@pytest.mark.parametrize(
    ("cell", "word", "gain"),
    [
        ("+7.6 [+3.6, +11.1]", "reproduced", "5.03, ours 3.6 to 11.1: included"),
        ("+2.6 [+1.6, +4.1]", "reproduced", "5.03, ours 1.6 to 4.1: excluded"),
        ("+7.6 [-3.6, +11.1]", "undecided", "5.03, ours -3.6 to 11.1: included"),
    ],
)
def test_the_detection_rate_of_the_abstract(cell, word, gain):
    """Eq. (6) beside 5.03 as printed, and beyond what as many copies give."""
    item = items.find_item("infilling_fig6")
    (claim,) = [claim for claim in item.claims if claim.printed]
    header = ("trained on", "4, %", "all detections, %")
    row = "real + 4 copies + 2 by unet"
    tables = [
        TableFacts(title=f"Differences in recall from {name}", header=header, body=[(row, "0", of)])
        for name, of in (("real alone", cell), ("real + 6 copies", "+1.0 [+0.5, +2.0]"))
    ]
    evidence = judge_claim(claim, tables, item.printed.values, None, "small")
    assert (evidence.word, evidence.gain) == (word, gain)
    no_better = tables[1].model_copy(update={"body": ((row, "0", "-3.0 [-6.0, +0.1]"),)})
    assert judge_claim(claim, [tables[0], no_better], item.printed.values, None, "small").word == (
        "undecided"
    )


def test_the_recall_of_table_1_needs_an_arm_of_each_network():
    item = items.find_item("infilling_table1")
    gains = [claim for claim in item.claims if isinstance(claim, Gain)]
    header = ("trained on", "all detections, %")
    margin, crn_margin, network = (
        TableFacts(
            title=f"Differences in recall from real + 4 copies + 2 by {other}, at false positives",
            header=header,
            body=[(f"real + 4 copies + 2 by {name}", "+2.0 [+1.0, +3.0]")],
        )
        for name, other in (
            ("unet", "unet_no_margin"),
            ("crn", "crn_no_margin"),
            ("unet", "crn"),
        )
    )
    assert [judge(claim, [margin, crn_margin, network]) for claim in gains] == ["reproduced"] * 3
    words = [judge(claim, [margin]) for claim in gains]
    assert words == ["reproduced", "not attempted", "not attempted"]
    assert verdicts.combine([Evidence("", word, "") for word in words]) == "not attempted"


def test_a_smoke_run_decides_nothing():
    tables = compare(**{"U-Net": "-2.0 p = 0.001"})
    assert judge(CLAIM, tables, scale="smoke") == "undecided"


@pytest.mark.parametrize(
    ("disc", "unet", "word"),
    [
        ("-6.0 p = 0.010", "80.0 [79.0, 81.0]", "contradicted"),
        ("-1.0 p = 0.400", "80.0 [79.0, 81.0]", "undecided"),  # CAN is not above the disc
        ("-6.0 p = 0.010", "80.0 [74.0, 86.0]", "undecided"),  # nor the U-Net, by its interval
    ],
)
def test_models_must_be_above_the_trivial_baseline(disc, unet, word):
    tables = compare(**{"U-Net": "+2.0 p = 0.010", "disc": disc})
    body = (("CAN", "78.0 [77.0, 79.0]"), ("U-Net", unet), ("disc", "75.0"))
    groups = (("U-Net", "1.0 [0.5, 1.5]"), ("disc", "2.0"))
    tables.append(TableFacts(title="means of a group", header=("", "Dice, %"), body=groups))
    tables.insert(1, TableFacts(title="means", header=("", "Dice, %"), body=body))
    assert judge(CLAIM, tables, DISC) == word


@pytest.mark.parametrize(
    ("can", "higher", "expected"),
    [
        ("70.0 [69.0, 71.0]", False, "better than"),
        ("74.0 [69.0, 79.0]", False, "not better than"),  # its upper end is above the baseline
        ("80.0 [79.0, 81.0]", False, "not better than"),
        ("80.0 [79.0, 81.0]", True, "better than"),
        ("76.0 [71.0, 81.0]", True, "not better than"),
        ("70.0", False, "not compared with"),
    ],
)
def test_a_baseline_is_beaten_by_the_whole_interval(can, higher, expected):
    body = (("CAN", can), ("disc", "75.0"))
    tables = [TableFacts(title="means", header=("", "Dice, %"), body=body)]
    floor = Floor("disc", "Dice*", higher)
    assert verdicts.compare_with_floor(tables, "CAN", floor) == expected


@pytest.mark.parametrize(
    ("cell", "p", "positive", "word"),
    [
        ("+0.039", "0.018", True, "reproduced"),
        ("-0.039", "0.018", True, "contradicted"),
        ("-0.039", "0.018", False, "reproduced"),
        ("+0.039", "0.180", True, "undecided"),
        ("+0.039 [0.007, 0.070]", "-", True, "reproduced"),
        ("-", "-", True, "not attempted"),
    ],
)
def test_a_gain_is_decided_by_its_own_column_of_p(cell, p, positive, word):
    claim = Gain("It helps.", "real + * by x", "merit", "Differences*", "p, Holm", positive)
    body = (("real + 2 by x", cell, p),)
    table = TableFacts(title="Differences", header=("", "merit", "p, Holm"), body=body)
    assert judge(claim, [table]) == word


@pytest.mark.parametrize(
    ("cell", "positive", "word"),
    [
        ("+0.026 [+0.004, +0.054]", True, "reproduced"),
        ("+0.026 [-0.003, +0.054]", True, "undecided"),
        ("-0.026 [-0.054, -0.004]", True, "undecided"),
        ("-", True, "undecided"),
    ],
)
def test_a_gain_must_be_beyond_that_of_a_trivial_baseline(cell, positive, word):
    claim = Gain("It helps.", "x", "merit", "* real", "", positive, beyond="* copies")
    tables = [
        TableFacts(title=f"Differences from {name}", header=("", "merit"), body=(("x", text),))
        for name, text in (("real", "+0.077 [+0.046, +0.108]"), ("copies", cell))
    ]
    assert judge(claim, tables) == word
    # what is worse than real patches alone needs no baseline
    assert judge(replace(claim, positive=False), tables) == "contradicted"


@pytest.mark.parametrize(
    ("change", "beyond", "positive", "word"),
    [
        ("+0.490 [+0.436, +0.548]", "+0.252 [+0.201, +0.309]", True, "reproduced"),
        ("+0.245 [+0.223, +0.269]", "-0.017 [-0.040, +0.012]", True, "undecided"),
        ("-0.279 [-0.379, -0.195]", "-0.159 [-0.244, -0.081]", False, "reproduced"),
        ("-0.279 [-0.379, -0.195]", "-0.059 [-0.142, +0.020]", False, "undecided"),
        ("+0.490 [+0.436, +0.548]", "+0.252", True, "undecided"),  # no interval
        ("+0.490 [+0.436, +0.548]", "-", True, "undecided"),
    ],
)
def test_an_edit_must_change_more_than_a_trivial_one(change, beyond, positive, word):
    claim = Gain("It works.", "mass", "change", "*", "p", positive, beyond_edit="change beyond*")
    table = TableFacts(
        title="Score",
        header=("", "change", "change beyond that", "p"),
        body=(("mass", change, beyond, "2e-04"),),
    )
    assert judge(claim, [table]) == word


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ("92.0 [90.0, 93.0]", "reproduced"),
        ("90.0 [88.0, 91.8]", "undecided"),  # a wide interval reaches everything
        ("88.7 [87.1, 90.1]", "undecided"),  # other data contradict no level
        ("92.0", "undecided"),
    ],
)
def test_a_level_is_reached_or_undecided(cell, word):
    claim = Level("It is reached.", "CAN", "Dice*", ("CAN", "dice"))
    table = TableFacts(title="means", header=("", "Dice, %"), body=(("CAN", cell),))
    assert judge(claim, [table]) == word


def test_a_level_on_other_data_decides_nothing():
    claim = Level("It is reached.", "CAN", "Dice*", ("CAN", "dice"))
    table = TableFacts(title="means", header=("", "Dice, %"), body=(("CAN", "93.0 [92.0, 94.0]"),))
    assert judge(claim, [table]) == "reproduced"
    elsewhere = judge_claim(claim, [table], PRINTED, None, "small", is_papers_data=False)
    assert elsewhere.word == "undecided" and "other data" in elsewhere.reason


def test_a_difference_is_no_level():
    claim = Level("It is reached.", "CAN", "Dice*", ("CAN", "dice"))
    tables = compare(CAN="99.0 [98.0, 100.0]")
    assert judge(claim, tables) == "not attempted"


def test_a_level_in_another_unit():
    claim = Level("It is reached.", "CAN", "Dice*", ("CAN", "dice"), factor=0.01)
    table = TableFacts(title="means", header=("", "Dice"), body=(("CAN", "0.91 [0.90, 0.92]"),))
    evidence = judge_claim(claim, [table], PRINTED, None, "small")
    assert evidence.reason == "0.91 [0.90, 0.92] against 0.917 as printed, within our interval"


@pytest.mark.parametrize(
    ("words", "combined"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "undecided"], "undecided"),
        (["reproduced", "contradicted"], "contradicted"),
        (["reproduced", "undecided", "not attempted"], "not attempted"),
        (["contradicted", "not attempted"], "contradicted"),
    ],
)
def test_all_claims_together(words, combined):
    assert verdicts.combine([Evidence("", word, "") for word in words]) == combined


@pytest.mark.parametrize(
    ("p", "is_papers_data", "trainings", "are_flat", "certainty"),
    [
        (0.001, True, 3, True, "high"),
        (0.001, True, 1, True, "moderate"),
        (0.001, False, 3, True, "moderate"),
        (0.001, False, 1, True, "low"),
        (0.02, True, 3, True, "low"),
        (None, True, 3, True, "low"),
        (0.001, True, 3, False, "low"),
    ],
)
def test_certainty(p, is_papers_data, trainings, are_flat, certainty):
    evidence = [Evidence("", "reproduced", "", p), Evidence("", "undecided", "", 0.5)]
    assert verdicts.rate_certainty(evidence, is_papers_data, trainings, are_flat) == certainty


@pytest.mark.parametrize("prefix", ["", "[ALLOWED, though synthetic lesions do not outscore] "])
def test_the_claims_on_edits_find_their_lines_whether_or_not_the_set_was_refused(prefix):
    """A study of a refused set says so in the title of each table."""
    header = ("generator", "change", "change if spread evenly", "change beyond that", "p")
    body = [
        ("mass", "+0.101 [+0.067, +0.140]", "+0.050", "+0.051 [+0.021, +0.083]", "2e-04"),
        ("calcification", "+0.120 [+0.083, +0.156]", "+0.050", "+0.07 [+0.03, +0.1]", "0.3"),
        ("removal", "+0.131 [+0.086, +0.179]", "-0.050", "+0.181 [+0.122, +0.232]", "2e-04"),
    ]
    title = f"{prefix}Score of a lesion by the classifiers trained on real patches alone"
    table = TableFacts(title=title, header=header, body=body)
    told = TableFacts(
        title=f"{prefix}Lesions told from normal patches by the classifiers",
        header=("lesions", "beside", "AUC", "p"),
        body=[
            ("mass and calcification added", "lesion removed", "0.669 [0.585, 0.743]", "1e-04"),
            ("mass added", "lesion removed", "0.870 [0.811, 0.913]", "5e-46"),
            ("as much brighter as mass, evenly", "lesion removed", "0.614 [0.499, 0.717]", "0.204"),
            ("calcification added", "lesion removed", "0.468 [0.354, 0.585]", "1.000"),
        ],
    )
    (item,) = [item for item in items.CONTEXTUAL if item.name == "fig1"]
    words = [claim.judge([table, told], {}).word for claim in item.claims]
    assert words == ["reproduced", "undecided", "reproduced", "undecided", "contradicted"]


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ("0.61 [0.52, 0.70]", "reproduced"),
        ("0.40 [0.31, 0.49]", "contradicted"),
        ("0.55 [0.45, 0.65]", "undecided"),
    ],
)
def test_an_area_is_compared_with_a_half(cell, word):
    table = TableFacts(title="told", header=("", "AUC"), body=[("mass", cell)])
    claim = Gain("Masses are told.", "mass", "AUC", level=0.5)
    assert judge_claim(claim, [table], {}, None, "small").word == word


@pytest.mark.parametrize(
    ("evenly", "word"),
    [
        ("0.614 [0.499, 0.717]", "reproduced"),
        ("0.710 [0.657, 0.811]", "undecided"),  # it touches
        ("0.950 [0.920, 0.990]", "undecided"),  # it is better
        ("0.5", "undecided"),
        (None, "undecided"),
    ],
)
def test_an_area_must_be_beyond_that_of_the_trivial_edit(evenly, word):
    body = [("mass", "0.870 [0.811, 0.913]"), *([("evenly", evenly)] if evenly else [])]
    table = TableFacts(title="told", header=("", "AUC"), body=body)
    claim = Gain("Masses are told.", "mass", "AUC", level=0.5, beyond_row="evenly")
    evidence = judge_claim(claim, [table], {}, None, "small")
    assert evidence.word == word
    if word == "undecided":
        assert f"; the trivial baseline {evenly or 'was not measured'}" in evidence.reason


def test_the_trivial_edit_must_lie_on_the_near_side():
    body = [("removal", "0.200 [0.150, 0.250]"), ("evenly", "0.350 [0.300, 0.400]")]
    claim = Gain("They are gone.", "removal", "AUC", positive=False, level=0.5, beyond_row="evenly")
    table = TableFacts(title="told", header=("", "AUC"), body=body)
    assert judge_claim(claim, [table], {}, None, "small").word == "reproduced"
    claim = replace(claim, row="evenly", beyond_row="removal")
    assert judge_claim(claim, [table], {}, None, "small").word == "undecided"


@pytest.mark.parametrize(
    ("rest", "p"), [("+0.20 [+0.10, +0.30] p = 0.040", 0.04), ("+0.20 [+0.10, +0.30]", None)]
)
def test_a_gain_is_as_certain_as_what_lies_beyond_the_trivial_edit(rest, p):
    """Its own p is 0.001."""
    header = ("", "change", "change beyond that")
    table = TableFacts(
        title="", header=header, body=[("mass", "+0.40 [+0.30, +0.50] p = 0.001", rest)]
    )
    claim = Gain("Edits are seen.", "mass", "change", beyond_edit="change beyond that")
    evidence = judge_claim(claim, [table], {}, None, "small")
    assert (evidence.word, evidence.p) == ("reproduced", p)
    assert evidence.reason.endswith(f"; beyond the trivial edit {rest}")

"""The rule of verdicts, by rows made by hand."""

from dataclasses import replace

import pytest

from tests.apps.report.rows import NAN, difference, level, make_facts, repeats
from tfmammo.apps.report import verdicts
from tfmammo.apps.report.facts import Key
from tfmammo.apps.report.items import find_item
from tfmammo.apps.report.verdicts import Difference, Level, Trivial, judge_claim

DISAGREE = verdicts.RUNS_DISAGREE
DISC = Trivial(model="disc", measure="dice")
CLAIM = Difference(says="CAN beats U-Net.", model="CAN", against="U-Net", measure="dice")
GAIN = Difference(says="It helps.", model="x", against="real", measure="dice", is_order=False)
LEVEL = Level(says="It is reached.", model="CAN", measure="dice", level=("CAN", "dice"))
PRINTED = {"CAN": {"dice": 91.7}, "U-Net": {"dice": 90.5}}
EXCLUDED = "printed gain excluded"
ROUNDED = "comes within rounding of"
ALIKE = repeats("folds", x=(50, 60, 70), real=(50, 60, 70))
ALIKE_FOLDS = repeats("folds", CAN=(89, 90, 91), **{"U_Net": (88.6, 89.6, 90.6)})
APART = repeats("folds", CAN=(89, 90, 91), **{"U_Net": (88, 89.9, 90)})


def judge(claim, *rows, trivial=None, is_sized=False, **about):
    return judge_claim(claim, make_facts(*rows, **about), PRINTED, trivial, is_sized)


def lead(value=2, low=1, high=3, p=0.01):
    return difference("CAN", "U-Net", value, low, high, p)


@pytest.mark.parametrize(
    ("row", "word", "why"),
    [
        (lead(), "holds", ""),
        (lead(-2, -3, -1), "does not hold", verdicts.RUNS_DISAGREE),
        (lead(p=0.06), "not decided", verdicts.NOT_SIGNIFICANT),  # p decides, not the interval
        (lead(p=NAN), "holds", ""),
        (lead(2, -1, 5, NAN), "not decided", verdicts.NOT_SIGNIFICANT),
        (lead(2, NAN, NAN, NAN), "not decided", verdicts.NO_TEST),
    ],
)
def test_a_test_decides_an_order(row, word, why):
    runs = repeats("runs", CAN=(88, 89), **{"U_Net": (90, 91)}) if row.value < 0 else APART
    evidence = judge(CLAIM, row, *runs)
    assert evidence.word == word
    if word == "not decided":
        assert evidence.why == why
    # of a difference against the claim the runs must agree, too
    if row.value < 0:
        assert judge(CLAIM, row, *APART).why == why


def test_a_smaller_value_may_be_the_better_one():
    claim = CLAIM.model_copy(update={"higher": False})
    fewer = repeats("folds", CAN=(1, 2), **{"U_Net": (3, 4)})
    assert judge(claim, lead(-2, -3, -1), *fewer).word == "holds"


@pytest.mark.parametrize("real", [89, Key(model="real", measure="dice")])
def test_a_model_beyond_real_patches_is_not_better(real):
    claim = CLAIM.model_copy(update={"real": real})
    for dice, word in ((88.9, "holds"), (89.1, "not decided")):
        evidence = judge(claim, lead(), level("CAN", dice), level("real", 89), *APART)
        assert evidence.word == word
    assert evidence.why == verdicts.BEYOND_REAL
    claim = claim.model_copy(update={"higher": False})
    fewer = repeats("folds", CAN=(1, 2), **{"U_Net": (3, 4)})
    for dice, word in ((89.1, "holds"), (88.9, "not decided")):
        rows = (lead(-2, -3, -1), level("CAN", dice), level("real", 89), *fewer)
        assert judge(claim, *rows).word == word


@pytest.mark.parametrize(
    ("table", "can", "unet", "why", "means"),
    [
        ("runs", (89.1, 89.4, 89.2), (88.0, 89.0, 87.0), "", ""),
        ("runs", (89.1, 89.4), (89.2, 87.8), DISAGREE, "89.1, 89.4 against 89.2, 87.8"),
        ("runs", (88.0, 89.0), (90.0, 91.1), DISAGREE, "88.0, 89.0 against 90.0, 91.1"),
        ("runs", (89.1,), (88.0, 87.0), verdicts.NOT_RECORDED, ""),
        ("folds", (89.1, 80.2), (88.0, 80.1), "", ""),
        ("folds", (89.1, 80.0), (88.0, 80.1), DISAGREE, "89.1, 80.0 against 88.0, 80.1"),
        ("folds", (89.1, NAN), (88.0, 80.1), DISAGREE, "89.1, - against 88.0, 80.1"),
    ],
)
def test_single_runs_must_agree_with_an_order(table, can, unet, why, means):
    evidence = judge(CLAIM, lead(), *repeats(table, CAN=can, **{"U_Net": unet}))
    assert evidence.why == why and evidence.detail.endswith(means)
    assert evidence.word == ("not decided" if why else "holds")
    assert not evidence.detectable, "the test is significant"


def test_one_run_of_each_model_decides_no_order():
    assert judge(CLAIM, lead(), runs=1).why == verdicts.ONE_RUN


def test_folds_are_those_of_the_claims_own_part_of_the_data_and_compared_by_their_numbers():
    loose = CLAIM.model_copy(update={"subset": "frame=loose"})
    row = replace(lead(), subset="frame=loose")
    apart = [replace(one, subset=f"frame=loose;{one.subset}") for one in APART]
    tight = [replace(one, value=0, subset=f"frame=tight;{one.subset}") for one in APART[:3]]
    assert judge(loose, row, *tight, *apart).word == "holds"
    assert judge(loose, row, *tight, *APART).why == verdicts.NOT_RECORDED
    renamed = [replace(one, subset=one.subset.replace("fold=2", "fold=3")) for one in apart[3:]]
    assert judge(loose, row, *apart[:3], *renamed).why == DISAGREE


def test_two_answers_of_the_same_networks_need_no_runs():
    claim = CLAIM.model_copy(update={"is_order": False})
    assert judge(claim, lead()).word == "holds"


def test_a_rival_that_lacks_its_papers_start_decides_nothing():
    claim = CLAIM.model_copy(update={"imagenet": "segnet", "printed": "dice"})
    means = level("U-Net", 88.7, 87, 90)
    evidence = judge(claim, lead(), means, *APART, random_starts=("segnet",))
    assert (evidence.word, evidence.why) == ("not decided", verdicts.RANDOM_START)
    assert not evidence.gain
    evidence = judge(claim, lead(), means, *APART)
    assert evidence.word == "holds" and evidence.gain


def test_a_copy_that_is_as_wide_as_its_rival_stands_in_for_the_papers_model():
    claim = CLAIM.model_copy(update={"printed": "dice"})
    wide = difference("wide CAN", "U-Net", 0.4, -0.2, 1, 0.3)
    folds = repeats("folds", **{"wide CAN": (88.2, 90, 90.2)})
    rows = (lead(), *APART, wide, *folds, level("U-Net", 88.7, 87, 90))
    about = {"data": "INbreast", "papers_data": "INbreast", "runs": 5}
    assert judge(claim, *rows, **about).word == "holds"
    evidence = judge(claim, *rows, stand_ins={"U-Net": "wide CAN"}, **about)
    assert evidence.word == EXCLUDED and evidence.basis.startswith("wide CAN, ")
    assert evidence.gain.endswith("excludes the printed 1.3 %")
    assert judge(claim, *rows, stand_ins={"SegNet": "wide CAN"}, **about).word == "holds"


@pytest.mark.parametrize(
    ("row", "higher", "gain"),
    [
        (lead(0.5, 0.2, 0.8, 0.06), True, "0.2 to 0.9 %, excludes the printed 1.3 %"),
        (lead(0.5, -0.5, 1.5, 0.6), True, "-0.6 to 1.7 %, includes the printed 1.3 %"),
        # 91.65 is 1.21 % more than 90.55
        (lead(0.4, -0.2, 1.16), True, f"-0.23 to 1.31 %, {ROUNDED} the printed 1.33 %"),
        (lead(-2, -3, -1), False, "1.1 to 3.4 %, excludes the printed -1.3 %"),
        (lead(0.5, NAN, NAN, 0.06), True, ""),
    ],
)  # fmt: skip
def test_a_printed_gain_is_within_our_interval_or_not(row, higher, gain):
    claim = CLAIM.model_copy(update={"printed": "dice", "higher": higher})
    means = level("U-Net", 88.7, 87.3, 90)
    assert judge(claim, row, means, *APART).gain.removeprefix("our relative gain, ") == gain
    assert judge(claim, row, *APART).gain == "" == judge(CLAIM, row, means, *APART).gain
    assert judge(claim, row, level("U-Net", 0), *APART).gain == ""


@pytest.mark.parametrize(
    ("row", "about", "word"),
    [
        (lead(0.5, -0.2, 1.0, 0.6), {}, EXCLUDED),  # 1.1 % of 88.7 at most, 1.3 % printed
        (lead(0.5, -0.2, 1.07, 0.6), {}, EXCLUDED),  # 1.206 %
        (lead(0.5, -0.2, 1.08, 0.6), {}, "not decided"),  # 1.218 %; 91.65 is 1.215 % above 90.55
        (lead(0.5, 0.2, 0.8, 0.01), {}, "holds"),  # smaller than printed, but a gain
        (lead(-0.9, -1.6, -0.2, 0.01), {}, EXCLUDED),  # whether or not the runs agree
        (lead(0.5, -0.2, 1.0, 0.6), {"data": "CBIS-DDSM"}, "not decided"),
        (lead(0.5, -0.2, 1.0, 0.6), {"runs": 1}, "not decided"),
    ],
)
def test_a_printed_gain_above_our_interval_is_excluded_on_the_papers_data(row, about, word):
    claim = CLAIM.model_copy(update={"printed": "dice"})
    about = {"data": "INbreast", "papers_data": "INbreast"} | about
    assert judge(claim, row, level("U-Net", 88.7), *ALIKE_FOLDS, **about).word == word
    # without the scores of single runs nothing is excluded
    if not row.p < 0.05:
        assert judge(claim, row, level("U-Net", 88.7), **about).word == "not decided"


@pytest.mark.parametrize(
    ("table", "can", "unet", "word"),
    [
        # 1.215 % of 88.7 are 1.08: an interval has 4.303 / 3 ** 0.5 deviations of folds
        ("folds", (89, 90, 91), (88.8, 89.7, 90.6), EXCLUDED),  # 0.2, 0.3, 0.4: up to 0.55
        ("folds", (89, 90, 91), (89.0, 89.7, 90.3), "not decided"),  # 0.0, 0.3, 0.7: up to 1.21
        ("folds", (89, 90, 91), (88.5, 89.9, 90), "not decided"),  # each below, not their interval
        ("folds", (89, 90, NAN), (88.8, 89.7, 90.6), "not decided"),
        ("runs", (89, 89.2, 88.9), (88.9, 88.8, 88.6), EXCLUDED),
        ("runs", (89, 89.6, 88.9), (88.5, 89.1, 88.6), "not decided"),
        ("runs", (89, 89, 89), (88.6, 88.6, 88.6), EXCLUDED),  # without any deviation
    ],
)
def test_runs_that_may_gain_as_much_as_printed_leave_it_open(table, can, unet, word):
    claim = CLAIM.model_copy(update={"printed": "dice"})
    rows = (lead(0.4, -0.2, 0.9, 0.6), level("U-Net", 88.7), *repeats(table, CAN=can, U_Net=unet))
    assert judge(claim, *rows, data="INbreast", papers_data="INbreast").word == word


@pytest.mark.parametrize(
    ("keys", "printed", "below", "within", "said"),
    [
        # an integer is rounded to integers
        (("CAN", "gain"), {"CAN": {"gain": 1}}, 0.4, 0.6, "1.0 points"),
        # an approximate number
        (("CAN", "gain"), {"CAN": {"gain": 10, "gain, plus or minus": 5}}, 4.9, 5.1, "10.0 points"),
        # two points of two shares, with the rounding of both: 1 to 3
        (
            ("x", "real", "recall"),
            {"x": {"recall": 0.83}, "real": {"recall": 0.81}},
            0.9,
            1.1,
            "2.0 points",
        ),
    ],
)
def test_a_printed_gain_is_excluded_below_the_range_that_it_may_mean(
    keys, printed, below, within, said
):
    claim = GAIN.model_copy(update={"printed_gain": keys})
    for high, word in ((below, EXCLUDED), (within, "not decided")):
        row = difference("x", "real", 0, -0.3, high, 0.6)
        facts = make_facts(row, *ALIKE, data="INbreast", papers_data="INbreast")
        evidence = judge_claim(claim, facts, printed)
        assert evidence.word == word and evidence.gain.endswith(f"printed gain of {said}")


def test_a_printed_gain_of_an_auc_has_three_decimals():
    claim = GAIN.model_copy(update={"printed_gain": ("CAN", "gain")})
    for high, word in ((0.0175, "includes"), (0.0164, "excludes")):
        row = replace(difference("x", "real", 0, -0.01, high, 0.6), unit="")
        facts = make_facts(row, data="OPTIMAM", papers_data="OPTIMAM")
        evidence = judge_claim(claim, facts, {"CAN": {"gain": 0.017}})
        assert evidence.gain == f"the interval over patients {word} the printed gain of 0.017"


def test_how_small_a_difference_could_have_been_detected():
    # an interval of +-1.96 standard errors of 0.5
    assert judge(CLAIM, lead(0.3, -0.68, 1.28, 0.5), *APART).detectable == "1.4 points"
    assert judge(CLAIM, lead(0.3, NAN, NAN, 0.5), *APART).detectable == ""


@pytest.mark.parametrize("claim", [CLAIM, GAIN, LEVEL])
def test_what_has_no_row_is_not_tested(claim):
    evidence = judge(claim, difference("SegNet", "CAN", -2, p=0.01), trivial=DISC, scale="smoke")
    assert (evidence.word, evidence.why) == ("not tested", verdicts.NOT_MEASURED)


def test_a_row_of_another_subset_table_or_measure_is_another_row():
    rows = (
        difference("CAN", "U-Net", 2, 1, 3, 0.01, subset="pathology=benign"),
        difference("CAN", "U-Net", 2, 1, 3, 0.01, table="groups"),
        difference("CAN", "U-Net", 2, 1, 3, 0.01, measure="mcc"),
    )
    assert judge(CLAIM, *rows, *APART).word == "not tested"


def test_a_smoke_run_decides_nothing():
    assert judge(CLAIM, lead(), *APART, scale="smoke").why == verdicts.SMOKE


@pytest.mark.parametrize(
    ("disc", "value", "word"),
    [
        (difference("disc", "CAN", -6, p=0.01), 2, "holds"),
        (difference("disc", "CAN", -1, p=0.4), 2, "not decided"),
        (difference("disc", "CAN", -1, p=0.01), -2, "does not hold"),
        (difference("disc", "CAN", 1, p=0.4), -2, "not decided"),  # CAN learned nothing
        (level("U-Net", 78, 74, 82), -2, "not decided"),  # by its interval
    ],
)
def test_the_networks_must_beat_the_trivial_baseline(disc, value, word):
    runs = APART if value > 0 else repeats("runs", CAN=(80, 81), **{"U_Net": (82, 83)})
    unet = (level("U-Net", 78, 77, 79),) if disc.against else ()
    rows = (lead(value, value - 1, value + 1), disc, *unet, level("disc", 75))
    evidence = judge(CLAIM, *rows, *runs, trivial=DISC)
    assert evidence.word == word
    alone = judge(CLAIM, *rows, trivial=DISC, runs=1)
    assert alone.word == "not decided"
    # further runs of a network that learned nothing would decide nothing
    if word == "not decided":
        assert evidence.why == verdicts.BELOW_TRIVIAL and "disc" in evidence.detail
        assert alone.why == verdicts.BELOW_TRIVIAL
    else:
        assert alone.why == verdicts.ONE_RUN


def test_a_rival_must_beat_the_trivial_baseline_too():
    won = difference("disc", "CAN", -6, p=0.01)
    for unet, word in ((-1, "not decided"), (-4, "holds")):
        disc = difference("disc", "U-Net", unet, p=0.4 if unet == -1 else 0.01)
        assert judge(CLAIM, lead(), won, disc, *APART, trivial=DISC).word == "holds"
        rival = CLAIM.model_copy(update={"is_rival": True})
        evidence = judge(rival, lead(), won, disc, *APART, trivial=DISC)
        assert evidence.word == word
    tight = rival.model_copy(update={"subset": "frame=tight"})
    rows = [replace(row, subset="frame=tight") for row in (lead(), won, disc)]
    apart = [replace(row, subset=f"frame=tight;{row.subset}") for row in APART]
    lost = difference("disc", "CAN", 6, p=0.01)
    assert judge(tight, *rows, lost, *apart, trivial=DISC).word == "holds", "lost elsewhere"
    assert judge(tight, *rows[:1], won, disc, *apart, trivial=DISC).why == verdicts.BELOW_TRIVIAL


@pytest.mark.parametrize(
    ("can", "higher", "is_better"),
    [
        ((70, 69, 71), False, True),
        ((74, 69, 79), False, False),
        ((80, 79, 81), True, True),
        ((76, 71, 81), True, False),
        ((70, NAN, NAN), False, False),
    ],
)
def test_a_baseline_is_beaten_by_the_whole_interval(can, higher, is_better):
    facts = make_facts(level("CAN", *can), level("disc", 75))
    trivial = Trivial(model="disc", measure="dice", higher=higher)
    assert verdicts.beats(facts, "CAN", trivial) == is_better
    assert not verdicts.beats(make_facts(), "CAN", trivial)


@pytest.mark.parametrize(
    ("copies", "word"),
    [
        ((1, 0.2, 2, 0.02), "holds"),
        ((1, -0.2, 2, 0.2), "not decided"),
        ((-1, -2, -0.2, 0.02), "not decided"),
        (None, "not decided"),
    ],
)
def test_a_gain_must_be_beyond_that_of_a_trivial_method(copies, word):
    claim = GAIN.model_copy(update={"beyond": Key(model="x", against="copies", measure="dice")})
    rows = [difference("x", "real", 3, 2, 4, 0.001)]
    rows += [difference("x", "copies", *copies)] if copies else []
    evidence = judge(claim, *rows)
    assert evidence.word == word
    if word == "holds":
        assert evidence.p == 0.02  # it is as certain as the weaker test
    else:
        assert evidence.why == verdicts.NOT_BEYOND
    # a loss needs no baseline
    assert judge(claim, difference("x", "real", -3, -4, -2, 0.01)).word == "does not hold"


@pytest.mark.parametrize("first", [1, -1])
@pytest.mark.parametrize(
    ("other", "is_alike"),
    [((1, 0.2, 2, 0.01), True), ((1, -0.2, 2, 0.2), False), ((-1, -2, -0.2, 0.01), False)],
)
def test_two_readings_of_a_measure_must_decide_alike(first, other, is_alike):
    claim = GAIN.model_copy(update={"reading": "jaccard"})
    rows = [difference("x", "real", first * 3, *sorted((first * 2, first * 4)), 0.001)]
    second = [first * number for number in other[:3]]
    second = difference("x", "real", second[0], *sorted(second[1:]), other[3], measure="jaccard")
    evidence = judge(claim, *rows, second)
    decided = "holds" if first > 0 else "does not hold"
    assert evidence.word == (decided if is_alike else "not decided")
    assert evidence.why == ("" if is_alike else verdicts.READINGS)
    assert judge(claim, *rows).why == verdicts.READINGS, "the other one was not measured"


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ((3, 1, 5, 0.01), "does not hold"),
        ((3, -1, 7, 0.2), "not decided"),
        ((-3, -5, -1, 0.01), "not decided"),
        ((0, -0.01, 0.01, 1), "not decided"),
    ],
)
def test_that_nothing_is_gained_is_never_shown(value, word):
    claim = GAIN.model_copy(update={"is_absent": True})
    assert judge(claim, difference("x", "real", *value)).word == word
    lower = claim.model_copy(update={"higher": False})
    number, low, high, p = value
    assert judge(lower, difference("x", "real", -number, -high, -low, p)).word == word


@pytest.mark.parametrize(
    ("area", "evenly", "word"),
    [
        ((0.87, 0.81, 0.91), (0.61, 0.50, 0.72), "holds"),
        ((0.87, 0.81, 0.91), (0.71, 0.66, 0.81), "not decided"),  # it touches
        ((0.70, 0.60, 0.80), (0.95, 0.90, 0.99), "not decided"),  # which is better
        ((0.87, 0.81, 0.91), None, "not decided"),
        ((0.40, 0.31, 0.49), (0.61, 0.50, 0.72), "does not hold"),
        ((0.55, 0.45, 0.65), (0.30, 0.20, 0.40), "not decided"),
    ],
)
def test_an_area_is_compared_with_a_half_and_with_the_trivial_edit(area, evenly, word):
    claim = Difference(
        says="Masses are seen.",
        model="mass",
        measure="auc",
        table="separation",
        null_value=0.5,
        is_order=False,
        trivial=Key(model="mass_evenly", measure="auc", table="separation"),
    )
    rows = [level("mass", *area, measure="auc", table="separation")]
    if evenly:
        rows.append(level("mass_evenly", *evenly, measure="auc", table="separation"))
    assert judge(claim, *rows).word == word


@pytest.mark.parametrize(
    ("can", "papers_data", "word", "why"),
    [
        ((93, 92, 94), "CBIS-DDSM", "holds", ""),
        ((92, 90, 93), "CBIS-DDSM", "not decided", verdicts.BELOW_LEVEL),  # its end is below
        ((90, 88, 91.8), "CBIS-DDSM", "not decided", verdicts.BELOW_LEVEL),
        ((88, 87, 90), "CBIS-DDSM", "not decided", verdicts.BELOW_LEVEL),
        ((92, NAN, NAN), "CBIS-DDSM", "not decided", verdicts.NO_TEST),
        ((93, 92, 94), "INbreast", "not decided", verdicts.OTHER_DATA),
    ],
)
def test_a_level_is_decided_on_the_papers_data_alone(can, papers_data, word, why):
    evidence = judge(LEVEL, level("CAN", *can), papers_data=papers_data)
    assert (evidence.word, evidence.why) == (word, why)
    in_fractions = LEVEL.model_copy(update={"factor": 0.01})
    fractions = level("CAN", *(number / 100 for number in can))
    assert judge(in_fractions, fractions, papers_data=papers_data).word == word


def test_what_depends_on_the_pixels_of_a_patch_needs_the_papers_size():
    assert judge(CLAIM, lead(), *APART, is_sized=True).word == "holds"
    evidence = judge(CLAIM, lead(), *APART, is_sized=True, is_smaller=True)
    assert (evidence.word, evidence.why) == ("not decided", verdicts.SMALLER)


@pytest.mark.parametrize(
    ("p", "papers_data", "runs", "trained", "certainty"),
    [
        (0.001, "CBIS-DDSM", 3, 1, "high"),
        (0.001, "CBIS-DDSM", 1, 1, "moderate"),
        (0.001, "INbreast", 3, 1, "moderate"),
        (0.001, "INbreast", 1, 1, "low"),
        (0.02, "CBIS-DDSM", 3, 1, "low"),
        (NAN, "CBIS-DDSM", 3, 1, "low"),
        (0.001, "CBIS-DDSM", 3, 2, "low"),  # one curve is not known
    ],
)
def test_certainty(p, papers_data, runs, trained, certainty):
    about = {"papers_data": papers_data, "runs": runs, "trained": trained}
    assert judge(CLAIM, lead(p=p), *APART, **about).certainty == certainty
    smaller = judge(CLAIM, lead(p=p), *APART, **about, is_smaller=True)
    assert smaller.certainty == {"high": "moderate"}.get(certainty, "low")


@pytest.mark.parametrize(
    ("high", "p", "certainty"),
    [
        # 1.08 points are excluded; an interval of 0.4 +- 0.5 lies 2.66 standard errors below
        (0.9, 0.0078, "high"),
        (1.0, 0.026, "low"),
    ],
)
def test_an_excluded_gain_is_as_certain_as_it_is_far_away(high, p, certainty):
    claim = CLAIM.model_copy(update={"printed": "dice"})
    rows = (lead(0.4, 0.8 - high, high, 0.6), level("U-Net", 88.7), *ALIKE_FOLDS)
    evidence = judge(claim, *rows, data="INbreast", papers_data="INbreast")
    assert evidence.word == EXCLUDED and evidence.certainty == certainty
    assert evidence.p == pytest.approx(p, rel=0.05)


def test_only_the_curves_of_the_compared_networks_count_where_they_are_named():
    flat = make_facts().curves[0]
    rising = tuple(float(n) for n in range(len(flat.values)))
    named = [
        replace(flat, run=f"unseen/{model}/fold0/seed0", values=values)
        for model, values in (("CAN", flat.values), ("U-Net", flat.values), ("SegNet", rising))
    ]
    facts = make_facts(lead(p=0.001), *APART, papers_data="CBIS-DDSM", curves=named, trained=3)
    assert judge_claim(CLAIM, facts, PRINTED).certainty == "high"
    other = CLAIM.model_copy(update={"against": "SegNet"})
    apart = repeats("folds", CAN=(89, 90, 91), SegNet=(88, 89.9, 90))
    row = difference("CAN", "SegNet", 2, 1, 3, 0.001)
    facts = make_facts(row, *apart, papers_data="CBIS-DDSM", curves=named, trained=3)
    assert judge_claim(other, facts, PRINTED).certainty == "low"


def test_fcn8s_and_segnet_need_imagenets_weights():
    for key in ("can_table1", "cgan_table"):
        starts = {claim.against: claim.imagenet for claim in find_item(key).claims}
        assert starts == {"FCN-8s": "fcn8s", "SegNet": "segnet", "U-Net": ""}

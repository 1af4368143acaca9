"""One table of words and codes of findings, for all readers."""

import pytest

from tfmammo.archives.findings import (
    LESION,
    Finding,
    find_coded,
    find_word,
    is_mass_shape,
    list_kinds,
    parse_pathology,
    worst_pathology,
)

NONE = Finding(None)
WORDS = {
    # BI-RADS, VinDr-Mammo
    "Mass": Finding("mass"),
    "masses": Finding("mass"),
    "Suspicious Calcification": Finding("calcification"),
    "Suspicious_Calcifications": Finding("calcification"),
    "architectural_distortion": Finding("distortion"),
    "Focal Asymmetry": Finding("asymmetry"),
    "Global Asymmetry": Finding("asymmetry"),
    "Skin Thickening": NONE,
    "Nipple Retraction": NONE,
    "Suspicious Lymph Node": NONE,
    "calcified lymph node": NONE,
    # INbreast
    "assymetry": Finding("asymmetry"),
    "Cluster": Finding("calcification"),
    "Spiculated region": Finding("distortion", is_certain=False),
    "Espiculated Region": Finding("distortion", is_certain=False),
    "Pectoral Muscle": NONE,
    "Unnamed": None,
    "Point 1": None,
    "": None,
    # label tools, nnU-Net, YOLO
    "nodule": Finding("mass"),
    "tumour": LESION,
    "Lesions": LESION,
    "ROI": LESION,
    "foreground": LESION,
    "Mass-calcification": Finding("mass", is_certain=False),
    "background": NONE,
    "breast": NONE,
    "ignore": None,
    "Rundherd": None,
    "ma\u0301ss": None,
    "\u200bmass": Finding("mass"),
}


@pytest.mark.parametrize("word", WORDS)
def test_words(word):
    found = find_word(word)
    assert found == WORDS[word]
    assert found is None or found.certain_kind == (found.kind if found.is_certain else None)


@pytest.mark.parametrize(
    ("findings", "kinds"),
    [
        ("High density mass with speculated margin", ["mass"]),
        ("Multiple equal density  masses$Benign macrocalcifications ", ["mass", "calcification"]),
        ("Architectural distortion and high density mass", ["distortion", "mass"]),
        ("Heterogenous non mass enhancement", []),
        ("Non-mass enhancement and a mass", ["mass"]),
        ("Focal ASYMMETRICAL increased density$IMLN", ["asymmetry"]),
        ("two equal density nodules with asymmetrial density", ["mass", "asymmetry"]),
        (
            "assymetrical density, architectural distorton, macrocalification",
            ["asymmetry", "distortion", "calcification"],
        ),
        ("edema pattern with multiple calcific foci", ["calcification"]),
        ("Clusters of microcalcification$mircocalcifications", ["calcification"]),
        ("Diffuse edematous changes$Postoperative scar", []),
        ("", []),
    ],
)
def test_kinds_in_cdd_cesms_sentences(findings, kinds):
    assert list_kinds(findings) == kinds


@pytest.mark.parametrize(
    ("codes", "label", "finding"),
    [
        ([("4147007", "Mass")], "", Finding("mass")),
        ([("M-03000", "Mass")], "", Finding("mass")),  # SRT, as older writers have it
        ([("129769006", "Cluster")], "anything", Finding("calcification")),
        ([("85756007", "Tissue")], "Mass", Finding("mass")),  # viewers' default
        ([("85756007", "Tissue")], "", LESION),
        ([("52988006", "Lesion")], "calcification", Finding("calcification")),
        ([("52988006", "Lesion")], "hedgehog", LESION),
        ([("99999", "Architectural distortion")], "", Finding("distortion")),
        ([("99999", "Hedgehog")], "mass", None),
        ([], "Mass", Finding("mass")),
        ([], "hedgehog", None),
    ],
)
def test_codes(codes, label, finding):
    assert find_coded(codes, label) == finding


@pytest.mark.parametrize(
    ("word", "pathology"),
    [
        ("Normal", "normal"),
        ("BENIGN_WITHOUT_CALLBACK", "benign"),
        ("benign without callback", "benign"),
        ("Cancer", "malignant"),
        ("UNPROVEN", None),
        ("", None),
    ],
)
def test_words_of_pathology(word, pathology):
    assert parse_pathology(word) == pathology


def test_several_findings_are_benign_only_together():
    assert worst_pathology(["benign", "malignant", None]) == "malignant"
    assert worst_pathology(["benign", "benign"]) == "benign"
    assert worst_pathology(["benign", None]) is worst_pathology([]) is None


def test_shapes_of_cbis_ddsm_that_are_no_masses():
    assert is_mass_shape(None) and is_mass_shape("irregular-architectural_distortion")
    assert not is_mass_shape("focal_asymmetric_density-architectural_distortion")

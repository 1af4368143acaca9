"""One table of words and codes of findings, for all readers."""

import pytest

from tfmammo.archives.findings import (
    LESION,
    Finding,
    find_word,
    is_mass_shape,
    list_kinds,
    parse_pathology,
    worst_pathology,
)

NONE = Finding(None)
UNSURE = Finding("distortion", is_certain=False)
WORDS = {
    # words of BI-RADS, VinDr-Mammo, INbreast, and of label tools, nnU-Net and YOLO
    Finding("mass"): ("Mass", "masses", "nodule", "\u200bmass"),
    Finding("calcification"): ("Suspicious Calcification", "Suspicious_Calcifications", "Cluster"),
    Finding("distortion"): ("architectural_distortion",),
    Finding("asymmetry"): ("Focal Asymmetry", "Global Asymmetry", "assymetry"),
    UNSURE: ("Spiculated region", "Espiculated Region"),
    LESION: ("tumour", "Lesions", "ROI", "foreground", "Mass-calcification"),  # unsure masses
    NONE: (
        *("Skin Thickening", "Nipple Retraction", "Pectoral Muscle", "background", "breast"),
        *("Suspicious Lymph Node", "calcified lymph node"),
    ),
    None: ("Unnamed", "Point 1", "", "ignore", "Rundherd", "ma\u0301ss"),
}


@pytest.mark.parametrize(
    ("word", "finding"), [(word, finding) for finding, words in WORDS.items() for word in words]
)
def test_words(word, finding):
    found = find_word(word)
    assert found == finding
    assert found is None or found.certain_kind == (found.kind if found.is_certain else None)


@pytest.mark.parametrize(
    ("findings", "kinds"),
    [
        ("Multiple equal density  masses$Benign macrocalcifications ", ["mass", "calcification"]),
        ("Non-mass enhancement and a mass", ["mass"]),
        ("Focal ASYMMETRICAL increased density$IMLN", ["asymmetry"]),
        ("two equal density nodules with asymmetrial density", ["mass", "asymmetry"]),
        ("architectural distorton, macrocalification", ["distortion", "calcification"]),
        ("Clusters of microcalcification$mircocalcifications", ["calcification"]),
        ("Diffuse edematous changes$Postoperative scar", []),
        ("", []),
    ],
)
def test_kinds_in_cdd_cesms_sentences(findings, kinds):
    assert list_kinds(findings) == kinds


def test_pathologies():
    words = {"Normal": "normal", "BENIGN_WITHOUT_CALLBACK": "benign", "Cancer": "malignant"}
    words |= {"benign without callback": "benign", "UNPROVEN": None, "": None}
    assert {word: parse_pathology(word) for word in words} == words
    assert worst_pathology(["benign", "malignant", None]) == "malignant"
    assert worst_pathology(["benign", "benign"]) == "benign"
    assert worst_pathology(["benign", None]) is worst_pathology([]) is None


def test_shapes_of_cbis_ddsm_that_are_no_masses():
    assert is_mass_shape(None) and is_mass_shape("irregular-architectural_distortion")
    assert not is_mass_shape("focal_asymmetric_density-architectural_distortion")

"""Name findings in one way for all archives."""

from tfmammo.mammogram import LesionKind

# the numbers of kinds in the label files that this package writes
CATEGORIES: dict[LesionKind, int] = {
    "mass": 1,
    "calcification": 2,
    "asymmetry": 3,
    "distortion": 4,
}

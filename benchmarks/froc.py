"""How fast boxes become a FROC curve, beside MONAI; one JSON line.

python benchmarks/froc.py [--images 10000] [--detections 100] [--peer-images 100]

matching: boxes to hits and false positives, image by image; froc: from there to the curve and its
numbers (wanted: at most two seconds together, for 10,000 images of 100 detections). processor:
seconds of all threads, which hardly depend on what else the machine does.

peer: MONAI's compute_froc_curve_data and compute_froc_score, which have no matching, on the same
hits and false positives as our `froc`, in turns, medians; of fewer images, because MONAI's time
grows with the square of their number. ratio: ours over theirs. difference: the largest between the
two means of sensitivity. Boxes are random, half of them of the lesions; every image has one or two.

Time: ten seconds on two idle cores, most of them for importing MONAI.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfmammo.metrics.detection import FPPI, Matches, froc, match

SIDE = 3000.0  # px, of an image
Image = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # boxes, scores, truth


def draw_images(images: int, detections: int) -> list[Image]:
    """Draw random lesions and detections; every second detection lies near a lesion."""
    random = np.random.default_rng(0)
    data = []
    for number in range(images):
        corners = random.uniform(0, SIDE, (detections + 1 + number % 2, 2))
        boxes = np.concatenate([corners, corners + random.uniform(50, 500, corners.shape)], axis=1)
        truth = boxes[detections:]
        boxes = boxes[:detections]
        near = truth[random.integers(len(truth), size=len(boxes[::2]))]
        boxes[::2] = near + random.normal(0, 20, near.shape)
        data.append((boxes, random.random(detections), truth))
    return data


def time_call(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what a call gives, its seconds, and those of processors."""
    wall = time.perf_counter()
    processor = time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - processor


def measure_ours(data: list[Image], repeats: int) -> dict[str, Any]:
    """Measure matching and curve; return the medians of both."""
    rows = []
    for _ in range(repeats):
        matches, *matching = time_call(lambda: [match(*image) for image in data])
        _, *curve = time_call(lambda: froc(matches))  # noqa: B023
        rows.append((*matching, *curve))
    matching_s, matching_processor, froc_s, froc_processor = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    return {
        "matching_s": round(matching_s, 4),
        "froc_s": round(froc_s, 4),
        "together_s": round(matching_s + froc_s, 4),
        "processor_s": round(matching_processor + froc_processor, 4),
        "wanted": "together <= 2",
    }


def compare_with_monai(data: list[Image], repeats: int) -> dict[str, Any]:
    """Compare our time with MONAI's, in turns."""
    try:
        from monai.metrics.froc import compute_froc_curve_data, compute_froc_score
    except ImportError:
        sys.exit(
            "benchmarks/froc.py compares with MONAI, which is missing; install it: pip install "
            '"tfmammo[benchmark]"'
        )
    matches = [match(*image) for image in data]
    joined = Matches.join(matches)
    # MONAI drops the lowest score: let it be a 0
    hits = np.append(joined.hits, np.zeros(joined.lesions - len(joined.hits) + 1))

    def theirs() -> float:
        curve = compute_froc_curve_data(joined.false_positives, hits, joined.lesions, joined.images)
        return float(compute_froc_score(*curve, FPPI))

    calls: dict[str, Callable[[], float]] = {"ours": lambda: froc(matches).mean, "theirs": theirs}
    times: dict[str, list[float]] = {name: [] for name in calls}
    means: dict[str, float] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            means[name], _, processor = time_call(call)
            times[name].append(processor)
    ours_s, theirs_s = (statistics.median(times[name]) for name in calls)
    return {
        "images": len(data),
        "ours_s": round(ours_s, 6),
        "monai_s": round(theirs_s, 6),
        "ratio": round(ours_s / theirs_s, 6),
        "difference": abs(means["ours"] - means["theirs"]),
        "wanted": "ratio <= 1, difference 0 but for rounding",
    }


def main() -> None:
    """Measure both, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--detections", type=int, default=100, help="in each image")
    parser.add_argument(
        "--peer-images", type=int, default=100, help="for the comparison with MONAI"
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    peer = compare_with_monai(draw_images(options.peer_images, options.detections), options.repeats)
    ours = measure_ours(draw_images(options.images, options.detections), options.repeats)
    print(
        json.dumps(
            {
                "benchmark": "froc",
                "images": options.images,
                "detections": options.detections,
                **ours,
                "peer": peer,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()

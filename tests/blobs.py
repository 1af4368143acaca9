"""A detector that is none of this package's: bright blobs in a folder of pictures -> COCO boxes.

python tests/blobs.py FOLDER BOXES --noise 0.02

Scores are the blob's brightness over its surroundings, plus noise; more noise, a worse detector.
"""

import argparse
import json
import zlib
from pathlib import Path

import cv2
import numpy as np


def find(image, noise, seed, sigmas=(4, 8, 16), count=20):
    """Blobs of a picture: rows of (score, row, col, radius), the surest first."""
    small = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    _, parts, statistics, _ = cv2.connectedComponentsWithStats((small > 0.1).astype(np.uint8))
    breast = parts == 1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA])  # without letters of lead
    random = np.random.default_rng(seed)
    rows = []
    for sigma in sigmas:
        inner = cv2.GaussianBlur(small, (0, 0), sigma / 2)
        contrast = inner - cv2.GaussianBlur(small, (0, 0), 1.5 * sigma)
        contrast[~breast] = 0
        side = 2 * sigma + 1
        peaks = (contrast == cv2.dilate(contrast, np.ones((side, side)))) & (contrast > 0.005)
        for row, col in np.argwhere(peaks):
            score = contrast[row, col] + random.normal(0, noise)
            rows.append((float(np.clip(score, 0, 1)), 4 * row, 4 * col, 4 * sigma))
    return sorted(rows, reverse=True)[:count]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("boxes", type=Path)
    parser.add_argument("--noise", type=float, default=0.0)
    options = parser.parse_args()
    listed = json.loads((options.images / "images.json").read_text())
    boxes = []
    for image in listed["images"]:
        picture = cv2.imread(str(options.images / image["file_name"]), cv2.IMREAD_UNCHANGED)
        seed = zlib.crc32(picture.tobytes())  # the same picture, the same noise
        for score, row, col, radius in find(picture / np.float32(65535), options.noise, seed):
            place = [int(col - radius), int(row - radius), 2 * radius, 2 * radius]
            box = {"image_id": image["id"], "category_id": 1, "bbox": place, "score": score}
            boxes.append(box)
    options.boxes.write_text(json.dumps(boxes))


if __name__ == "__main__":
    main()

"""Write the dataset card beside a folder of records.

It holds neither dates nor paths, so equal builds give equal bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from tfmammo.data.tfrecord import Manifest

LICENCES = {
    "cbis_ddsm": "CC BY 3.0. Name CBIS-DDSM, The Cancer Imaging Archive, DOI "
    "10.7937/K9/TCIA.2016.7O02S9CY.",
    "cdd_cesm": "The Cancer Imaging Archive's data usage policy: attribution (DOI "
    "10.7937/29kw-ae92), no re-identification.",
    "cmmd": "CC BY 4.0. Name The Chinese Mammography Database, The Cancer Imaging Archive, DOI "
    "10.7937/tcia.eqde-4b16.",
    "ddsm": "Made public by the University of South Florida without a formal licence; cite Heath "
    "et al., IWDM 2000.",
    "embed": "Given out by Emory University under its EMBED license for non-commercial research; "
    "not to be passed on.",
    "folder": "Your own images: you are responsible for their terms of use.",
    "inbreast": "Given out on request by its authors (Moreira et al., Academic Radiology 2012); "
    "not to be passed on.",
    "mini_mias": "For research, under the agreement that comes with its images; cite Suckling et "
    "al., 1994.",
    "optimam": "Given out on application to OPTIMAM (OMI-DB) under a data sharing agreement; not "
    "to be passed on.",
    "phantom": "Synthetic mammograms, free for any use.",
    "rsna": "For non-commercial use under the rules of RSNA's competition of 2022; not to be "
    "passed on.",
    "vindr": "Given out by PhysioNet under its data use agreement to those it has admitted; not "
    "to be passed on.",
}
UNKNOWN = "Unknown: ask whoever distributes the archive before passing anything on."


def format_card(manifest: Manifest, dead: int) -> str:
    """Describe the folder in Markdown: counts, licence, format."""
    archive = manifest.identity["archive"]
    data = manifest.identity["data"]
    counts = [
        ("patches", manifest.count),
        ("patients", len(set(manifest.columns["patient_ids"]))),
        ("mammograms", len(set(manifest.columns["image_ids"]))),
        ("mammograms in the archive", archive["mammograms"]),
        ("files or images skipped, some in part (failures.csv)", dead),
        ("shards", len(manifest.shards)),
        ("bytes", sum(shard.bytes for shard in manifest.shards)),
    ]
    names = {"kind": "kinds", "pathology": "pathologies", "official split": "official_splits"}
    names |= {"view": "views", "laterality": "lateralities", "shape": "shapes"}
    configs = {key: manifest.identity[key] for key in ("data", "build")}
    parts = [
        f"# {manifest.identity['name']}: {data['patches']} patches of {archive['name']}",
        f"Fingerprint `{manifest.fingerprint}`. Patches of {manifest.size} x {manifest.size} px, "
        f"written by `tfmammo build` (tfmammo {manifest.identity['tfmammo']}).",
        "## Counts",
        _format_table(("what", "how many"), counts),
        *(
            _format_table((title, "patches"), _count_values(manifest.columns[column]))
            for title, column in names.items()
        ),
        "## Licence",
        LICENCES.get(archive["name"], UNKNOWN),
        "## Form",
        "TFRecord files of tf.train.Example: `image` is little-endian uint16 row by row, "
        "rint(65535 * value); `mask` a PNG, 0 or 1; `id`, `patient_id`, `kind`, `pathology`, "
        "`shape` and `official_split` are text, empty where unknown. `manifest.json` holds the "
        "same columns and every file's sha256.",
        "## Config",
        f"```json\n{json.dumps(configs, indent=2, sort_keys=True)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _count_values(values: Iterable[str]) -> list[tuple[str, int]]:
    return sorted((value or "not stated", count) for value, count in Counter(values).items())


def _format_table(head: tuple[str, str], rows: Iterable[tuple[str, int]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | ---: |"]
    for name, count in rows:
        cell = " ".join(name.split()).replace("|", "\\|")
        lines.append(f"| {cell} | {count:,} |")
    return "\n".join(lines)

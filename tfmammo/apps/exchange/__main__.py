"""Write a data set of mammograms or patches for another tool.

tfmammo export FORMAT --config FILE DIR [--set KEY=VALUE ...]

FORMAT is one of
    nnunet      nnU-Net's raw format, version 2, with dataset.json and splits_final.json
    coco        COCO's detection and segmentation
    yolo        Ultralytics' labels (polygons, or boxes with exchange.boxes=true) and data.yaml
    hf          an image folder for Hugging Face datasets
    monai       a data list of the Medical Segmentation Decathlon's form

FILE is configs/exchange.yaml or the config of a train script; only its section data is used. No
patient is in two subsets. Patients are pseudonyms. DIR must be new, or a stopped run of the same
command, which resumes. `data.name=folder data.root=DIR` reads it back, and
`data.split_file=DIR/split.json` gives the same split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfmammo import cli
from tfmammo.apps.exchange.cases import ExchangeConfig
from tfmammo.apps.exchange.formats import FORMATS
from tfmammo.apps.exchange.writing import write_dataset


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error becomes one line on stderr and exit code 2."""
    parser = cli.make_command_parser("export", __doc__)
    parser.add_argument("format", choices=tuple(FORMATS), help="format to write")
    config_help = "a YAML file, or a shipped config: exchange, or that of a train script"
    parser.add_config(ExchangeConfig, config_help)
    parser.add_argument("output", type=Path, metavar="DIR", help="where to write")
    options = parser.parse_args(arguments)

    def run() -> None:
        config = cli.read_config(ExchangeConfig, options)
        summary = write_dataset(options.format, config, options.output)
        images = ", ".join(f"{count:,} {subset}" for subset, count in summary.images.items())
        lesions = ", ".join(f"{count:,} {kind}" for kind, count in summary.lesions.items())
        console = cli.console
        console.print(f"images    {images}")
        console.print(f"lesions   {lesions or 'none'}")
        if summary.skipped:
            console.print(f"skipped   {summary.skipped:,} images or lesions; see the log")
        console.print(f"written   {options.output}", soft_wrap=True)

    cli.run(run)


if __name__ == "__main__":
    main()

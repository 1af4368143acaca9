"""Trained networks on disk: a SavedModel for each function of a model, and a card about them.

    directory/card.json     names, shapes, ranges, and where the weights come from
    directory/NAME/         a SavedModel with the signature "serving_default", named inputs and
                            named outputs

An export counts only if every SavedModel, read back from disk, answers as the eager network does.
It is written beside its place and moved there whole; until then an older export stays. Reading one
executes no pickle: SavedModels are protocol buffers and a tensor file.

    directory/NAME.onnx     the same function for ONNX Runtime, where `write_onnx` put it
"""

from tfmammo.tracking.export.card import (
    CARD,
    FORMAT,
    RANGES,
    SIGNATURE,
    TOLERANCE,
    Tensors,
    describe_variables,
    find_function,
    format_card,
    get_training_patients,
    locate,
    read_card,
)
from tfmammo.tracking.export.onnx import write_onnx
from tfmammo.tracking.export.reading import (
    LoadedFunction,
    assign,
    find_patients,
    hash_files,
    load,
    load_identified,
    load_onnx,
    predict,
)
from tfmammo.tracking.export.writing import Exportable, export, remove_leftovers, write_saved_models

__all__ = [
    "CARD",
    "FORMAT",
    "RANGES",
    "SIGNATURE",
    "TOLERANCE",
    "Exportable",
    "LoadedFunction",
    "Tensors",
    "assign",
    "describe_variables",
    "export",
    "find_function",
    "find_patients",
    "format_card",
    "get_training_patients",
    "hash_files",
    "load",
    "load_identified",
    "load_onnx",
    "locate",
    "predict",
    "read_card",
    "remove_leftovers",
    "write_onnx",
    "write_saved_models",
]

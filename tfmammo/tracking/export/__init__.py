"""Trained networks on disk: a SavedModel for each function of a model, and a card about them.

    directory/card.json     names, shapes, ranges, and where the weights come from
    directory/NAME/         a SavedModel with the signature "serving_default", named inputs and
                            named outputs

An export counts only if every SavedModel, read back from disk, answers as the eager network does.
It is written beside its place and moved there whole; until then an older export stays. Reading one
executes no pickle: SavedModels are protocol buffers and a tensor file.

    directory/NAME.onnx     the same function for ONNX Runtime, where `write_onnx` put it
"""

from tfmammo.tracking.export.card import CARD as CARD
from tfmammo.tracking.export.card import FORMAT as FORMAT
from tfmammo.tracking.export.card import RANGES as RANGES
from tfmammo.tracking.export.card import SIGNATURE as SIGNATURE
from tfmammo.tracking.export.card import TOLERANCE as TOLERANCE
from tfmammo.tracking.export.card import Tensors as Tensors
from tfmammo.tracking.export.card import describe_variables as describe_variables
from tfmammo.tracking.export.card import find_function as find_function
from tfmammo.tracking.export.card import format_card as format_card
from tfmammo.tracking.export.card import get_training_patients as get_training_patients
from tfmammo.tracking.export.card import locate as locate
from tfmammo.tracking.export.card import read_card as read_card
from tfmammo.tracking.export.onnx import write_onnx as write_onnx
from tfmammo.tracking.export.reading import LoadedFunction as LoadedFunction
from tfmammo.tracking.export.reading import assign as assign
from tfmammo.tracking.export.reading import find_patients as find_patients
from tfmammo.tracking.export.reading import hash_files as hash_files
from tfmammo.tracking.export.reading import load as load
from tfmammo.tracking.export.reading import load_identified as load_identified
from tfmammo.tracking.export.reading import load_onnx as load_onnx
from tfmammo.tracking.export.reading import predict as predict
from tfmammo.tracking.export.writing import Exportable as Exportable
from tfmammo.tracking.export.writing import compare_answers as compare_answers
from tfmammo.tracking.export.writing import export as export
from tfmammo.tracking.export.writing import remove_leftovers as remove_leftovers
from tfmammo.tracking.export.writing import write_saved_models as write_saved_models

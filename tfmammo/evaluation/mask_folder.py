"""Masks that another tool predicted, such as nnU-Net, as a model of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from tfmammo.data.patches import Patches
from tfmammo.errors import DataError, ExportError
from tfmammo.filesystem import name_case

PREFIX: Final = "masks:"
ENDING: Final = ".png"


@dataclass(frozen=True)
class MaskFolder:
    """A folder of label maps, one PNG a patch: 0 is tissue, everything else is mass.

    The files have the names that `tfmammo exchange` gives the patches. The folder does not tell
    whom the tool was trained on. So it must hold predictions of unseen patients alone, and it is
    eligible for exactly the patches that it holds.

    Attributes:
        uri: "masks:DIR", as the config names it.
        folder: The folder.
        names: The names of its files without the ending.
        card: Empty: nothing is known of the training.
        source: What the tool looked at.
    """

    uri: str
    folder: Path
    names: frozenset[str]
    card: Mapping[str, Any] = field(default_factory=dict)
    source: str = "image"
    is_leaky: bool = False

    @property
    def training(self) -> frozenset[str]:
        """What tells one fold from another: the patches that it holds."""
        return self.names

    def find_eligible(self, patches: Patches) -> NDArray[np.bool_]:
        """Mark the patches that the folder holds.

        Returns:
            bool [n].
        """
        return np.array([name_case(name) in self.names for name in patches.ids], np.bool_)

    def answer(
        self, patches: Patches, inputs: object, target: str, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Read the masks of patches.

        Args:
            patches: The patches.
            inputs: Not looked at.
            target: "mask".
            shape: Shape of one mask.

        Returns:
            float32 [n, *shape], 0 or 1.

        Raises:
            DataError: A file is missing, can't be read, or has another size.
        """
        return np.stack([self._read(name, shape) for name in patches.ids])

    def _read(self, patch: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        path = self.folder / f"{name_case(patch)}{ENDING}"
        try:
            content = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise DataError(
                f"{path}: the mask of a patch can't be read ({error.strerror})"
            ) from None
        labels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
        if labels is None or labels.ndim != 2:
            raise DataError(f"{path}: is no PNG file with one channel")
        if labels.shape != shape[:2]:
            size = " x ".join(map(str, labels.shape))
            raise DataError(f"{path}: has {size} px, and data.size is {shape[0]}")
        return (labels > 0).astype(np.float32).reshape(shape)


def open_mask_folder(uri: str, target: str) -> MaskFolder:
    """Open the folder of a URI "masks:DIR".

    Raises:
        ExportError: Another output than masks is wanted, or the folder holds no PNG file.
    """
    folder = Path(uri.removeprefix(PREFIX))
    if target != "mask":
        raise ExportError(f"{uri}: holds masks, and the evaluation wants {target}")
    names = frozenset(path.stem for path in folder.glob(f"*{ENDING}"))
    if not names:
        raise ExportError(f"{uri}: there is no folder with PNG files")
    return MaskFolder(uri, folder, names)

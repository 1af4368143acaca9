"""Studies from a PACS, through the CAD pipeline, and results back into a PACS.

For each mammogram of a study:

    done?       the target has the report that would be made: nothing is fetched
    fetch       into memory
    predict     one mammogram at a time, whatever is in flight
    store       each result that the target does not have yet, the report last

The target is the only record of what is done, so the same command resumes a run that was stopped.
Every request is repeated while the server can't be reached. A result has the same UID however often
it is made, and the target is queried for it before each attempt to store it, so no result is stored
twice.

Nothing is written to disk. Messages name studies as the user did, and nothing else of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

from tfmammo.apps.pacs.config import Address, PacsConfig, read_credentials
from tfmammo.apps.pacs.nodes import IMAGE_CLASSES, Instance, Node, encode, try_repeatedly
from tfmammo.apps.pacs.results import Identity, build_results
from tfmammo.archives import dicom, folder
from tfmammo.archives.silence import silence
from tfmammo.errors import ArchiveError, ConfigError, PacsError, PipelineError, TfmammoError
from tfmammo.inference.pipeline import Pipeline
from tfmammo.mammogram import hash_id


@dataclass
class Outcome:
    """The result of processing a study."""

    study: str  # Study Instance UID
    stored: int = 0  # mammograms whose results were stored now
    present: int = 0  # mammograms whose results the target had
    skipped: list[str] = field(default_factory=list)  # one reason for each skipped image
    failure: str | None = None  # why the study is not complete

    def describe(self) -> str:
        """Describe it in one line."""
        if self.failure:
            return f"{self.study}: {self.failure}"
        line = f"{self.study}: results of {self.stored} mammograms stored"
        if self.present:
            line += f", those of {self.present} present"
        if self.skipped:
            line += f"; {len(self.skipped)} images skipped: {'; '.join(sorted(set(self.skipped)))}"
        return line


class RoundTrip:
    """Takes studies from one server through the pipeline to another, or to the same."""

    def __init__(
        self, pipeline: Pipeline, config: PacsConfig, source: Address, target: Address
    ) -> None:
        self._pipeline = pipeline
        self._config = config
        self._addresses = (source, target)
        self._credentials = read_credentials(config, source, target)
        self._identity = Identity.make(pipeline)
        self._predicting = threading.Lock()
        self._connecting = threading.Lock()
        self._nodes: dict[tuple[int, int], Node] = {}
        self._receiver: Any = None  # of DIMSE, once a node of it is open

    def run(self, studies: Sequence[str]) -> Iterator[Outcome]:
        """Process studies by their UIDs, `config.in_flight` at once, and yield their outcomes."""
        with silence():
            wrong = [study for study in studies if not UID(study).is_valid]
        if wrong:
            raise ConfigError(f"--study: {wrong[0]} is not a UID")
        try:
            with ThreadPoolExecutor(self._config.in_flight) as pool:
                yield from pool.map(self._process, dict.fromkeys(studies))
        finally:
            for node in self._nodes.values():
                node.close()

    def _process(self, study: str) -> Outcome:
        """Process a study; an error of this package becomes the outcome's failure."""
        outcome = Outcome(study)
        try:
            source, target = self._open(0), self._open(1)
            instances = try_repeatedly(self._config, lambda: source.list_instances(study))
            images = [one for one in instances if one.sop_class in ("", *IMAGE_CLASSES)]
            if not instances:
                raise PacsError("the source has no such study")
            outcome.skipped += [
                f"is not a mammogram but {name}"
                for one in instances
                if one not in images and (name := UID(one.sop_class).name).endswith("Image Storage")
            ]
            for image in images:
                self._process_image(image, source, target, outcome)
            if not outcome.stored + outcome.present:
                reasons = "; ".join(sorted(set(outcome.skipped)))
                raise PacsError(f"has no mammogram{f' ({reasons})' if reasons else ''}")
        except TfmammoError as error:
            outcome.failure = str(error)
        return outcome

    def _process_image(self, image: Instance, source: Node, target: Node, outcome: Outcome) -> None:
        last = [self._identity.name_result("report", image)]
        if self._config.capture:
            last.append(self._identity.name_result("capture", image))
        if all(self._is_stored(target, result) for result in last):
            outcome.present += 1
            return
        dataset = try_repeatedly(self._config, lambda: source.retrieve(image))
        try:
            results = self._compute(dataset, image)
        except (ArchiveError, PipelineError) as error:
            outcome.skipped.append(str(error))
            return
        del dataset  # its pixels
        for result in results:
            self._store(target, result)
        outcome.stored += 1

    def _compute(self, dataset: Dataset, image: Instance) -> list[Dataset]:
        with _hold_in_memory(encode(dataset)) as path:
            try:
                mammogram = replace(
                    folder.read_one(path),
                    archive="pacs",
                    patient_id=hash_id("pacs", image.study),
                    image_id=hash_id("pacs", image.uid),
                )
                with self._predicting:
                    result = self._pipeline.predict(mammogram)
                header = dicom.read_dataset(path)
            except (ArchiveError, PipelineError) as error:
                raise type(error)(str(error).removeprefix(f"{path}: ")) from None
        return build_results(result, header, image, self._identity, self._config.capture)

    def _is_stored(self, target: Node, result: Instance) -> bool:
        return try_repeatedly(self._config, lambda: target.has(result))

    def _store(self, target: Node, dataset: Dataset) -> None:
        """Store a result unless the target has it."""
        result = Instance(
            str(dataset.StudyInstanceUID),
            str(dataset.SeriesInstanceUID),
            str(dataset.SOPInstanceUID),
            str(dataset.SOPClassUID),
        )
        if self._is_stored(target, result):
            self._compare(target, result, dataset)
            return

        def attempt() -> None:
            if not target.has(result):  # an attempt before may have succeeded without an answer
                target.store(dataset)

        try_repeatedly(self._config, attempt)
        if not self._is_stored(target, result):
            raise PacsError("the target accepted a result and does not have it")

    def _compare(self, target: Node, result: Instance, dataset: Dataset) -> None:
        """Check that a stored segmentation is the one that the report will refer to."""
        if "SegmentSequence" not in dataset:
            return
        stored = try_repeatedly(self._config, lambda: target.retrieve(result))
        with silence():
            are_equal = stored.get("PixelData") == dataset.PixelData and len(
                stored.get("SegmentSequence", ())
            ) == len(dataset.SegmentSequence)
        if not are_equal:
            raise PacsError(
                "the target has another segmentation by the same models, from a run that was "
                "stopped; delete it there"
            )

    def _open(self, role: int) -> Node:
        """Return the source's (0) or the target's (1) node; threads don't share DICOMweb's."""
        address = self._addresses[role]
        owner = threading.get_ident() if address.is_web else 0
        with self._connecting:
            if (owner, role) not in self._nodes:
                self._nodes[owner, role] = self._connect(role)
            return self._nodes[owner, role]

    def _connect(self, role: int) -> Node:
        """Make a node; nothing is sent yet. Both kinds need the extra `pacs`."""
        address = self._addresses[role]
        if address.is_web:
            from tfmammo.apps.pacs.dicomweb import WebNode

            return WebNode(address, self._config, self._credentials[role])
        from tfmammo.apps.pacs.dimse import DimseNode, Receiver

        if self._receiver is None:
            titles = [each.ae_title for each in self._addresses if not each.is_web]
            self._receiver = Receiver(self._config, titles)
        return DimseNode(address, self._config, self._receiver)


@contextlib.contextmanager
def _hold_in_memory(content: bytes) -> Iterator[Path]:
    """Hold a file in memory, under a path of this process alone; no disk sees it."""
    if not hasattr(os, "memfd_create"):
        raise ConfigError("images of a PACS are only kept in memory, which needs Linux")
    descriptor = os.memfd_create("mammogram")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)

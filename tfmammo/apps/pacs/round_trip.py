"""Studies from a PACS, through the CAD pipeline, and results back into a PACS.

For each mammogram of a study:

    done?       the target holds the report that would be made: nothing is fetched
    fetch       into memory
    predict     one mammogram at a time, whatever is in flight
    store       each result that the target does not hold yet, then the report

The target is the only record of what is done, so a run that was stopped goes on with the same
command. Every request is repeated while the server can't be reached. A result has the same UID
however often it is made, and before each attempt to store it the target is asked for it, so no
result is stored twice.

Nothing is written to a disk. Messages name studies as the user did, and nothing else of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from tfmammo.apps.pacs.config import Address, PacsConfig, read_credentials
from tfmammo.apps.pacs.nodes import IMAGE_CLASSES, Instance, Node, connect, encode, try_repeatedly
from tfmammo.apps.pacs.results import Identity, build_results
from tfmammo.archives import dicom, folder
from tfmammo.archives.silence import silence
from tfmammo.errors import ArchiveError, ConfigError, PacsError, PipelineError, TfmammoError
from tfmammo.inference.pipeline import Pipeline, PipelineResult
from tfmammo.mammogram import hash_id


@dataclass
class Outcome:
    """What became of a study.

    Attributes:
        study: Study Instance UID.
        stored: Mammograms whose results were stored now.
        present: Mammograms whose results were there.
        left_out: Why images were left out, one reason an image.
        failure: Why the study is not complete; None where it is.
    """

    study: str
    stored: int = 0
    present: int = 0
    left_out: list[str] = field(default_factory=list)
    failure: str | None = None

    def describe(self) -> str:
        """Describe it in one line."""
        if self.failure:
            return f"{self.study}: {self.failure}"
        line = f"{self.study}: results of {self.stored} mammograms stored"
        if self.present:
            line += f", those of {self.present} were there"
        if self.left_out:
            line += (
                f"; {len(self.left_out)} images left out: {'; '.join(sorted(set(self.left_out)))}"
            )
        return line


@dataclass(frozen=True)
class RoundTrip:
    """The way of studies from one server through the pipeline to another, or to the same.

    Attributes:
        pipeline: The three loaded models.
        config: Limits.
        source: Where studies are.
        target: Where results go.
    """

    pipeline: Pipeline
    config: PacsConfig
    source: Address
    target: Address

    def run(self, studies: Sequence[str]) -> Iterator[Outcome]:
        """Process studies, `config.in_flight` at once.

        Args:
            studies: Study Instance UIDs; one that stands twice is processed once.

        Yields:
            The outcome of each, in their order.

        Raises:
            ConfigError: A UID is none, or credentials can't be used.
        """
        with silence():
            wrong = [study for study in studies if not UID(study).is_valid]
        if wrong:
            raise ConfigError(f"--study: {wrong[0]} is no UID")
        worker = _Worker(self, Identity.make(self.pipeline))
        try:
            with ThreadPoolExecutor(self.config.in_flight) as pool:
                yield from pool.map(worker.process, dict.fromkeys(studies))
        finally:
            worker.close()


class _Worker:
    """Processes studies; threads share it."""

    def __init__(self, way: RoundTrip, identity: Identity) -> None:
        self._way = way
        self._config = way.config
        self._identity = identity
        self._credentials = read_credentials(way.config, way.source, way.target)
        self._predicting = threading.Lock()
        self._connecting = threading.Lock()
        self._nodes: dict[tuple[int, int], Node] = {}

    def close(self) -> None:
        """Close the connections of all threads."""
        for node in self._nodes.values():
            node.close()

    def process(self, study: str) -> Outcome:
        """Process a study; an error of this package becomes the outcome's failure."""
        outcome = Outcome(study)
        try:
            source, target = self._connect()
            instances = try_repeatedly(self._config, lambda: source.list_instances(study))
            images = [one for one in instances if one.sop_class in ("", *IMAGE_CLASSES)]
            if not instances:
                raise PacsError("the source holds no such study")
            outcome.left_out += [
                f"is no mammogram but {name}"
                for one in instances
                if one not in images and (name := UID(one.sop_class).name).endswith("Image Storage")
            ]
            for image in images:
                self._process_image(image, source, target, outcome)
            if not outcome.stored + outcome.present:
                reasons = "; ".join(sorted(set(outcome.left_out)))
                raise PacsError(f"holds no mammogram{f' ({reasons})' if reasons else ''}")
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
            outcome.left_out.append(str(error))
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
                    result: PipelineResult = self._way.pipeline.predict(mammogram)
                header = dicom.read_dataset(path)
            except (ArchiveError, PipelineError) as error:
                raise type(error)(str(error).removeprefix(f"{path}: ")) from None
        return build_results(result, header, image, self._identity, self._config.capture)

    def _is_stored(self, target: Node, result: Instance) -> bool:
        return try_repeatedly(self._config, lambda: target.has(result))

    def _store(self, target: Node, dataset: Dataset) -> None:
        """Store a result that is not there.

        Raises:
            PacsError: It is there with another content, or the target does not keep it.
        """
        result = Instance(
            str(dataset.StudyInstanceUID),
            str(dataset.SeriesInstanceUID),
            str(dataset.SOPInstanceUID),
            str(dataset.SOPClassUID),
        )
        if self._is_stored(target, result):
            self._compare(target, result, dataset)
            return

        attempts = 0

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            # an attempt before may have succeeded without an answer
            if attempts == 1 or not target.has(result):
                target.store(dataset)

        try_repeatedly(self._config, attempt)
        if not self._is_stored(target, result):
            raise PacsError("the target accepted a result and does not hold it")

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
                "the target holds another segmentation by the same models, from a run that was "
                "stopped; remove it there"
            )

    def _connect(self) -> tuple[Node, Node]:
        """Return this thread's nodes: connections of DICOMweb belong to one thread."""
        return self._open(self._way.source, 0), self._open(self._way.target, 1)

    def _open(self, address: Address, role: int) -> Node:
        owner = threading.get_ident() if address.is_web else 0
        with self._connecting:
            if (owner, role) not in self._nodes:
                node = connect(address, self._config, self._credentials[role])
                self._nodes[owner, role] = node
            return self._nodes[owner, role]


@contextlib.contextmanager
def _hold_in_memory(content: bytes) -> Iterator[Path]:
    """Hold a file in memory, under a path of this process alone; no disk sees it.

    Raises:
        ConfigError: The system has no such files.
    """
    if not hasattr(os, "memfd_create"):
        raise ConfigError("files in memory need Linux, and images of a PACS go nowhere else")
    descriptor = os.memfd_create("mammogram")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)

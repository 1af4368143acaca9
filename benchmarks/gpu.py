"""A queue of training runs for a GPU without TensorFlow; docs/guides/gpu.md has more.

python benchmarks/gpu.py queue JOBS.yaml QUEUE      # here, with tfmammo
python gpu.py next FOLDER OUT [--minutes 12]        # on the machine with the GPU
python benchmarks/gpu.py collect OUT QUEUE          # here
python benchmarks/gpu.py write QUEUE JOB EXPORT     # here, with tfmammo

queue prepares each job of JOBS.yaml that is not prepared yet: it lowers the training step to
StableHLO, packs the patches, and keeps the card of the future export. QUEUE/next then holds what
the first unfinished jobs need, scripts included, in at most 60 MB.
next needs a copy of QUEUE/next, JAX, NumPy, OpenCV, SciPy and scikit-image, and no network. It
trains the first unfinished jobs, several at once, starts the next one when one is finished, and
stops in time. OUT then holds the answer, at most 8 files of at most 16 MiB. It is renewed every
minute, so that little is lost if the machine goes away.
collect puts an answer into the queue. QUEUE/next then holds what is left to do, with the states of
unfinished jobs, which go on where they ended.
write makes an export of a finished job, as train/ does, with the curve beside its card.

python benchmarks/gpu.py show QUEUE             # how far each job is
python benchmarks/gpu.py masks QUEUE JOB DIR    # predicted masks, for evaluate/ as masks:DIR

JOBS.yaml lists jobs, as benchmarks/gpu_jobs.yaml: `name`; `model`, a script of train/; `set`, its
overrides; and, if they are not the usual ones, `config` (MODEL, the shipped one), `precision`
(bfloat16), `bits` of packed images (16; 8 halve the file), and `folds`, for a job NAME-FOLD each.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_step
import numpy as np
from gpu_step import Job, read_jobs

MEGABYTE = 10**6
STATE_MB = 40  # of a job's state, and of its weights
FILES = 8  # of an answer
FILE_BYTES = 2**24  # of such a file, at most
RENEWED = 60  # s between answers
LAST_START = 60  # s: a job that could not run longer is not started
CLOSING = 30  # s for the last validation, answers and state of the jobs
# what `next` imports beside its own scripts
IMPORTED = [
    "tfmammo/__init__.py",
    *(
        f"tfmammo/metrics/{name}.py"
        for name in ("__init__", "blending", "segmentation", "significance", "synthesis")
    ),
]
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, source, run in (("queue", "jobs", prepare_queue), ("collect", "out", collect)):
        command = commands.add_parser(name)
        command.add_argument(source, type=Path)
        command.add_argument("queue", type=Path)
        command.add_argument("--mb", type=float, default=60, help="of QUEUE/next, at most (60)")
        command.set_defaults(run=run)
    command = commands.add_parser("next")
    command.add_argument("folder", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--minutes", type=float, default=12, help="until it has ended (12)")
    command.add_argument("--together", type=int, default=4, help="jobs that run at once (4)")
    command.set_defaults(run=run_next)
    command = commands.add_parser("show")
    command.add_argument("queue", type=Path)
    command.set_defaults(run=lambda options: show(options.queue, read_jobs(options.queue)))
    for name, run in (("write", write), ("masks", write_masks)):
        command = commands.add_parser(name)
        command.add_argument("queue", type=Path)
        command.add_argument("job")
        command.add_argument("folder", type=Path)
        command.set_defaults(run=run)
    command = commands.add_parser("train", help=argparse.SUPPRESS)
    command.add_argument("folder", type=Path)
    command.add_argument("job")
    command.add_argument("minutes", type=float)
    command.set_defaults(run=lambda o: gpu_step.Run(o.folder, o.job).train(o.minutes))
    options = parser.parse_args()
    options.run(options)


def write_jobs(queue: Path, jobs: Sequence[Job]) -> None:
    """Write the jobs of a queue."""
    (queue / "queue.json").write_text(json.dumps({"jobs": jobs}, indent=1), encoding="utf-8")


def read_progress(queue: Path, job: Job) -> dict[str, Any]:
    """Read how far a job is: {} before its first steps."""
    path = queue / "runs" / job["name"] / "progress.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def is_finished(queue: Path, job: Job) -> bool:
    """Return whether a job has made all of its steps."""
    return bool(read_progress(queue, job).get("made") == job["steps"])


def show(queue: Path, jobs: Iterable[Job]) -> None:
    """Print how far each job is."""
    for job in jobs:
        progress = read_progress(queue, job)
        about = [f"{progress.get('made', 0)} of {job['steps']} steps"]
        about += [f"{progress['milliseconds']} ms each"] if progress else []
        about += [f"{key} {value:.4f}" for key, value in progress.get("metrics", {}).items()]
        print(f"{job['name']}: {', '.join(about)}", flush=True)


def expand_jobs(content: dict[str, Any], path: Path) -> list[Job]:
    """Make the jobs of JOBS.yaml: one for each fold."""
    jobs: list[Job] = []
    known = {"name", "model", "config", "set", "precision", "bits", "folds"}
    for entry in content["jobs"]:
        if wrong := (set(entry) - known) | ({"name", "model"} - set(entry)):
            raise SystemExit(f"{path}: {', '.join(sorted(wrong))}: unknown or missing in a job")
        usual = {"config": entry["model"], "precision": "bfloat16", "bits": 16}
        job = usual | entry | {"set": list(flatten(entry.get("set", [])))}
        folds = job.pop("folds", None)
        if folds is None:
            jobs.append(job)
        for fold in folds or ():
            of_fold = {"name": f"{job['name']}-{fold}", "set": [*job["set"], f"data.fold={fold}"]}
            jobs.append(job | of_fold)
    if len({job["name"] for job in jobs}) < len(jobs):
        raise SystemExit(f"{path}: two jobs have the same name")
    return jobs


def flatten(words: Iterable[Any]) -> Iterator[str]:
    """List overrides one by one: YAML's aliases make lists of lists."""
    for word in words:
        yield from (word,) if isinstance(word, str) else flatten(word)


def choose_state(variables: list[dict[str, Any]], most: float) -> str:
    """Choose the most exact form of a state that has at most so many bytes."""
    sizes = {form: gpu_step.count_state_bytes(variables, form) for form in gpu_step.STATES}
    return next((form for form, size in sizes.items() if size <= most), "none")


def prepare_queue(options: argparse.Namespace) -> None:
    """Prepare what JOBS.yaml lists and the queue lacks, then QUEUE/next."""
    from tfmammo.config.parsing import read_yaml
    from tfmammo.errors import TfmammoError

    specs = expand_jobs(read_yaml(options.jobs), options.jobs)
    queue = options.queue
    queue.mkdir(parents=True, exist_ok=True)
    prepared = {}
    if (queue / "queue.json").exists():
        prepared = {job["name"]: job for job in read_jobs(queue)}
    for spec in specs:
        if prepared.get(spec["name"], {"spec": spec})["spec"] != spec:
            raise SystemExit(f"{queue}: has another job {spec['name']}; give this one another name")
    missing = [spec for spec in specs if spec["name"] not in prepared]
    for _, group in itertools.groupby(missing, lambda spec: (spec["model"], spec["precision"])):
        # in a process of its own, which gives its memory back
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            try:
                for job in pool.imap(functools.partial(prepare_job, options), group):
                    prepared[job["name"]] = job
                    print(f"{job['name']}: prepared, its state travels as {job['state']}")
                    names = [spec["name"] for spec in specs if spec["name"] in prepared]
                    write_jobs(queue, [prepared[name] for name in names])
            except TfmammoError as error:
                raise SystemExit(str(error)) from None
    make_next(queue, options.mb)


def prepare_job(options: argparse.Namespace, spec: Job) -> Job:
    """Prepare a job; return what queue.json says of it."""
    import gpu_export

    return complete_job(options.queue, spec, gpu_export.prepare(spec, options.queue), options.mb)


def complete_job(queue: Path, spec: Job, job: Job, megabytes: float) -> Job:
    """Add to a job how its state travels, and how large its part of an answer is at most."""
    meta = gpu_step.read_meta(queue / "programs" / job["program"])
    size = sum((queue / path).stat().st_size for path in list_files(queue, job))
    room = MEGABYTE * (megabytes - 1) - size  # of QUEUE/next, beside scripts and tables
    state = choose_state(meta["variables"], min(room, STATE_MB * MEGABYTE))
    weights = gpu_step.count_state_bytes(meta["variables"], "weights")
    returns = weights <= STATE_MB * MEGABYTE
    with np.load(queue / "data" / job["data"]) as data:
        answers = data["test_image"].size * len(meta["functions"])
    largest = max(weights if returns else 0, gpu_step.count_state_bytes(meta["variables"], state))
    return job | {
        "state": state,
        "weights": returns,
        "answer_bytes": largest + answers + MEGABYTE,
        "spec": spec,
    }


def list_files(queue: Path, job: Job) -> list[Path]:
    """List the files that a job needs on the machine with the GPU, relative to the queue."""
    program = queue / "programs" / job["program"]
    meta = gpu_step.read_meta(program)
    files = [queue / "data" / job["data"], *program.iterdir()]
    files += [queue / "programs" / meta["frozen"]] if "frozen" in meta else []
    run = queue / "runs" / job["name"]
    files += [path for path in run.glob("*") if path.suffix in (".csv", ".json")]
    files += [path for path in [run / "state.npz"] if path.exists()]
    return [path.relative_to(queue) for path in files]


def make_next(queue: Path, megabytes: float) -> None:
    """Make QUEUE/next: scripts, and all that unfinished jobs need, as long as there is room."""
    target = queue / "next"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    scripts = [*IMPORTED, "benchmarks/gpu.py", "benchmarks/gpu_step.py"]
    for name in scripts:
        place = target / name.removeprefix("benchmarks/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place)
    total = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    chosen: list[Job] = []
    taken: set[Path] = set()
    for job in read_jobs(queue):
        if is_finished(queue, job):
            continue
        new = set(list_files(queue, job)) - taken
        size = sum((queue / path).stat().st_size for path in new)
        if total + size > MEGABYTE * megabytes:
            continue
        for path in new:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(queue / path, target / path)
        taken |= new
        total += size
        chosen.append(job)
    write_jobs(target, chosen)
    show(queue, read_jobs(queue))
    names = ", ".join(job["name"] for job in chosen) or "nothing"
    print(f"{target}: {total / MEGABYTE:.1f} MB: {names}", flush=True)


def run_next(options: argparse.Namespace) -> None:
    """Train the first unfinished jobs, several at once, until all are finished or time is over."""
    folder = options.folder
    end = time.monotonic() + 60 * options.minutes - CLOSING
    waiting = [job for job in read_jobs(folder) if not is_finished(folder, job)]
    started: list[Job] = []
    running: dict[str, subprocess.Popen[bytes]] = {}
    told: set[str] = set()  # the jobs that have been stopped
    stops = gpu_step.collect_stops()
    options.out.mkdir(parents=True, exist_ok=True)
    with share_gpu():
        renewed = time.monotonic()
        while waiting or running:
            left = end - time.monotonic()
            has_time = not stops and (left > LAST_START or not started)
            while has_time and waiting and len(running) < options.together:
                if not has_room([*started, waiting[0]]):
                    print("the answer is full; the other jobs wait for the next one", flush=True)
                    waiting.clear()
                    break
                started.append(job := waiting.pop(0))
                running[job["name"]] = start_job(folder, job, left / 60)
            if not has_time:
                waiting.clear()
            for name in (running.keys() - told) if stops else ():
                running[name].terminate()  # once: it keeps what there is
                told.add(name)
            reap(folder, started, running)
            if time.monotonic() - renewed > RENEWED:
                write_answer(folder, started, options.out)
                renewed = time.monotonic()
            time.sleep(0.5)
        write_answer(folder, started, options.out)


def reap(folder: Path, started: list[Job], running: dict[str, subprocess.Popen[bytes]]) -> None:
    """Remove the processes that have ended, and say how far their jobs are."""
    for name in [name for name, process in running.items() if process.poll() is not None]:
        show(folder, [job for job in started if job["name"] == name])
        if running.pop(name).returncode:
            print(f"{name}: failed; see runs/{name}/log.txt", flush=True)


@contextlib.contextmanager
def share_gpu() -> Iterator[None]:
    """Within, NVIDIA's MPS lets processes use a GPU at the same time, where it is installed."""
    service = shutil.which("nvidia-cuda-mps-control")
    is_ours = service is not None and subprocess.run([service, "-d"]).returncode == 0
    try:
        yield
    finally:
        if service and is_ours:
            subprocess.run([service], input=b"quit\n")


def start_job(folder: Path, job: Job, minutes: float) -> subprocess.Popen[bytes]:
    """Start a job in a process of its own."""
    log = folder / "runs" / job["name"] / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "train", folder, job["name"], minutes]
    with log.open("ab") as file:
        return subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=file, start_new_session=True
        )


def has_room(jobs: Iterable[Job]) -> bool:
    """Return whether the answers of jobs fit into the files of one answer."""
    return sum(job["answer_bytes"] for job in jobs) <= FILES * FILE_BYTES - MEGABYTE


def write_answer(folder: Path, jobs: Iterable[Job], out: Path) -> None:
    """Write the folders of jobs as a tar file in parts, answer-I-of-N."""
    whole = folder / "answer.tar"
    with tarfile.open(whole, "w") as tar:
        for job in jobs:
            run = folder / "runs" / job["name"]
            for path in sorted(run.iterdir()):
                if ".new" in path.suffixes:
                    continue
                # Its job may delete it, or put another in its place, while it is read.
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    name = f"runs/{job['name']}/{path.name}"
                    tar.addfile(tar.gettarinfo(arcname=name, fileobj=file), file)
    count = max(1, -(-whole.stat().st_size // FILE_BYTES))
    if count > FILES:
        raise SystemExit(f"{whole}: has more than {FILES} files of {FILE_BYTES} bytes")
    old = list(out.glob("answer-*"))
    with whole.open("rb") as file:
        for i in range(count):
            (out / f"new-{i}").write_bytes(file.read(FILE_BYTES))
    for path in old:
        path.unlink()
    for i in range(count):
        (out / f"new-{i}").rename(out / f"answer-{i + 1}-of-{count}")
    whole.unlink()


def collect(options: argparse.Namespace) -> None:
    """Put an answer's runs into the queue, unless they are further there, and renew QUEUE/next."""
    queue, parts = options.queue, sorted(options.out.glob("answer-*"))
    jobs = {job["name"]: job for job in read_jobs(queue)}
    count = int(parts[0].name.rpartition("-")[2]) if parts else 0
    if not parts or len(parts) != count:
        raise SystemExit(f"{options.out}: holds {len(parts)} of {count} parts of an answer")
    incoming = queue / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    whole = incoming / "answer.tar"
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    with tarfile.open(whole) as tar:
        tar.extractall(incoming, filter="data")
    for run in sorted(incoming.glob("runs/*")):
        if run.name not in jobs:
            raise SystemExit(f"{options.out}: {run.name}: is no job of {queue}")
        job = jobs[run.name]
        made = [read_progress(place, job).get("made", 0) for place in (incoming, queue)]
        if made[0] < made[1]:
            print(f"{run.name}: {queue} is further, at {made[1]} steps")
            continue
        shutil.rmtree(queue / "runs" / run.name, ignore_errors=True)
        (queue / "runs").mkdir(exist_ok=True)
        run.rename(queue / "runs" / run.name)
    shutil.rmtree(incoming)
    make_next(queue, options.mb)


def write(options: argparse.Namespace) -> None:
    """Write a finished job's weights as an export."""
    import gpu_export

    gpu_export.write_model(options.queue, options.job, options.folder)


def write_masks(options: argparse.Namespace) -> None:
    """Write a label map, 0 or 1, for each held-out patch of a segmenter."""
    import cv2

    job = gpu_step.find_job(options.queue, options.job)
    about = gpu_step.read_meta(options.queue / "programs" / job["program"])["measure"]
    if about["real"] != "mask":
        raise SystemExit(f"{options.job}: its answers are no masks")
    path = options.queue / "runs" / options.job / f"answer-{about['function']}.npz"
    answer = gpu_step.read_own(path, gpu_step.identify(options.queue, job))["answer"]
    masks = answer[..., 0] > 127
    with np.load(options.queue / "data" / job["data"]) as data:
        names = data["test_names"]
    options.folder.mkdir(parents=True)
    for name, mask in zip(names, masks, strict=True):
        cv2.imwrite(str(options.folder / f"{name}.png"), mask.astype(np.uint8))


if __name__ == "__main__":
    main()

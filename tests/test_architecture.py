"""The rules of CONTRIBUTING.md, held by reading the sources: who imports whom, what nobody imports,
length, paths.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for top in ("tfmammo", "train", "evaluate", "benchmarks")
    for path in (REPOSITORY / top).rglob("*.py")
)

# Imports run one way. A part of the package imports from its own row and from the rows above it.
# Scripts (train, evaluate, benchmarks) and commands import whatever they need.
LAYERS = (
    {"errors", "filesystem", "document", "shipped", "config", "mammogram", "cli"},
    {"nn"},
    {"archives", "tracking"},
    {"models", "baselines"},
    {"data"},
    {"metrics"},
    {"detection"},
    {"synthesis"},
    {"training", "inference"},
    {"evaluation"},
    {"studies"},
    {"api"},
    {"apps"},
)
ROW = {part: number for number, parts in enumerate(LAYERS) for part in parts}
ENTRY_POINTS = ("tfmammo.data.build",)  # which is `python -m` by nature, as every __main__.py
# What the table alone would allow.
MODELS = ("tfmammo.models", "tfmammo.baselines")
FORBIDDEN = {
    **{part: (*MODELS, "tfmammo.archives") for part in MODELS},
    "tfmammo.data": (*MODELS, "tfmammo.tracking"),
    "tfmammo.detection": (*MODELS, "tfmammo.archives"),
    "tfmammo.training": (*MODELS, "tfmammo.detection", "tfmammo.inference"),
}
# What several models share; no models themselves, so models may import them.
SHARED = ("tfmammo.baselines.segmenter", "tfmammo.baselines.vgg16", "tfmammo.nn.growth")
# The only places (prefixes of a path) that may import a library.
HOMES = {
    "apache_beam": ("tfmammo/data/runners.py",),  # an extra, for clusters
    "mlflow": ("tfmammo/tracking/", "tfmammo/apps/serving/"),
    "yaml": ("tfmammo/config/parsing.py",),
    "object_detection": ("tfmammo/detection/ssd.py",),  # an extra, which needs a process of its own
    "official": ("tfmammo/detection/mask_rcnn.py",),  # of the same extra
    "tf_keras": ("tfmammo/detection/",),
    "tensorflow_hub": ("tfmammo/detection/detections.py",),
    "runpy": ("tfmammo/__main__.py",),  # runs scripts, which are no modules, by their names
    "torch": ("benchmarks/",),  # benchmarks compare with it
    "pydicom": ("tfmammo/archives/", "tfmammo/apps/pacs/", "benchmarks/"),  # which compare with it
    "dicomweb_client": ("tfmammo/apps/pacs/dicomweb.py",),
    "pynetdicom": ("tfmammo/apps/pacs/dimse.py",),
    "highdicom": ("tfmammo/archives/writers/",),
    "gradio": ("tfmammo/apps/studio/",),
    "portalocker": ("tfmammo/filesystem.py",),
    # a pickle runs code when it is read, but where it finds nothing to call
    "pickle": ("tfmammo/nn/tensor_files.py",),
    "resource": ("benchmarks/",),  # not on Windows
}
NOWHERE = {
    "tensorflow.keras": "write `import keras`",
    "cloudpickle": "a pickle runs code when it is read",
    "dill": "a pickle runs code when it is read",
    "joblib": "a pickle runs code when it is read",
    "shelve": "a pickle runs code when it is read",
    "fcntl": "Windows has none: filesystem.take_lock",
    "importlib.import_module": "no import by string",
    "importlib.util": "no import by string",
    "__import__": "no import by string",
}
LONGEST = 500
LONGEST_PAPER = 700  # of models/: one paper is one file
LONGEST_SCRIPT = 60  # of train/ and evaluate/: what is longer is library
MACHINE_PATH = re.compile(r"(?<![\w.~})-])/(?:home|root|work|tmp|Users)(?![\w-])")


def within(name: str, prefix: str) -> bool:
    """Whether a dotted name is the prefix or is below it."""
    return name == prefix or name.startswith(f"{prefix}.")


def module_name(path: str) -> str:
    """The dotted name of a file: tfmammo/models/can.py -> tfmammo.models.can."""
    return path.removesuffix(".py").replace("/", ".")


def imports(tree: ast.AST, path: str) -> Iterator[tuple[str, str]]:
    """(local name, full dotted name) of every import, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
                yield "", alias.name
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{base}.{alias.name}"


def uses(tree: ast.AST, path: str) -> set[str]:
    """Full dotted names of everything imported and of every attribute reached from an import,
    aliases resolved.
    """
    bound = list(imports(tree, path))
    names = {name for _, name in bound}
    aliases = {local: name for local, name in bound if local}
    for node in ast.walk(tree):
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and (parts or inner.id == "__import__"):
            names.add(".".join([aliases.get(inner.id, inner.id), *parts]))
    return names


def part_of(name: str) -> str:
    """The part of the package that a dotted name belongs to: tfmammo.models.can -> models."""
    return name.split(".")[1] if name.count(".") else ""


def is_command(name: str) -> bool:
    """Whether a module is a command, which imports whatever it needs."""
    return name.endswith(".__main__") or name in ENTRY_POINTS


def arrow_faults(names: set[str], path: str) -> Iterator[str]:
    """Imports against the direction of the layers, and modules that are in no layer."""
    own = module_name(path)
    part = part_of(own)
    if not within(own, "tfmammo") or part in ("__init__", "__main__"):
        return
    if part not in ROW:
        yield f"{own} is in no layer"
        return
    if is_command(own):
        return
    others = {one for one in names if one.startswith("tfmammo.") and not within(one, own)}
    for name in others:
        if ROW.get(part_of(name), -1) > ROW[part]:
            yield f"tfmammo.{part} may not import {name}, which is in a later layer"
        if name.endswith(".__main__"):
            yield f"{own} may not import {name}, which is a command"
    for restricted, targets in FORBIDDEN.items():
        if within(own, restricted):
            for name in others:
                shared = any(within(name, one) for one in SHARED) and restricted in MODELS
                if not shared and any(within(name, target) for target in targets):
                    yield f"{restricted} may not import {name}"


def library_faults(names: set[str], path: str) -> Iterator[str]:
    """Libraries outside their home, and what has no place at all."""
    for name in names:
        for library, homes in HOMES.items():
            if within(name, library) and not path.startswith(homes):
                yield f"{name} belongs in {' or '.join(homes)}"
        yield from (f"{name}: {why}" for banned, why in NOWHERE.items() if within(name, banned))
        if (
            name.startswith("yaml.")
            and not name.startswith(("yaml.safe_", "yaml.Safe"))
            and not name.endswith("Error")
        ):
            yield f"{name}: only yaml.safe_load and yaml.safe_dump"


def faults(path: str, source: str) -> list[str]:
    """All that is wrong with one source file, one sentence each."""
    tree = ast.parse(source)
    names = uses(tree, path)
    found = {*arrow_faults(names, path), *library_faults(names, path)}
    for node in ast.walk(tree):
        is_allowing = isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        if is_allowing and ast.unparse(node.value) != "False":
            found.add("allow_pickle: a pickle runs code when it is read")
    longest = LONGEST_SCRIPT if path.startswith(("train/", "evaluate/")) else LONGEST
    longest = LONGEST_PAPER if path.startswith("tfmammo/models/") else longest
    lines = len(source.splitlines())
    if not path.startswith("benchmarks/") and lines > longest:
        found.add(f"{lines} lines, {longest} at most")
    return sorted(found)


def test_source_keeps_the_rules():
    texts = {path: (REPOSITORY / path).read_text(encoding="utf-8") for path in SOURCES}
    found = {path: faults(path, text) for path, text in texts.items()}
    assert {path: of_one for path, of_one in found.items() if of_one} == {}


def test_packages_form_no_circle():
    targets: dict[str, set[str]] = {}
    for path in SOURCES:
        own = module_name(path)
        if within(own, "tfmammo") and not is_command(own):
            names = uses(ast.parse((REPOSITORY / path).read_text(encoding="utf-8")), path)
            parts = {part_of(name) for name in names if within(name, "tfmammo")}
            targets.setdefault(part_of(own), set()).update(parts & set(ROW) - {part_of(own)})
    TopologicalSorter(targets).prepare()  # raises an error that names a circle


def test_no_file_names_a_folder_of_one_machine(repository):
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout, so nothing says which files belong to it")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
    options = {"cwd": repository, "check": True, "capture_output": True, "text": True}
    listed = subprocess.run([*command, "--exclude-standard"], **options).stdout
    found = []
    for path in filter(Path.is_file, (repository / name for name in listed.split("\0") if name)):
        content = path.read_bytes()
        if b"\0" not in content:  # no image or other binary file
            lines = content.decode(errors="replace").splitlines()
            found += [(path.name, line) for line in lines if MACHINE_PATH.search(line)]
    assert found == []

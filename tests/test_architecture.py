"""The rules of CONTRIBUTING.md, held by reading the sources: who imports whom, what nobody imports,
length, paths.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for top in ("tfmammo", "train", "evaluate", "benchmarks")
    for path in (REPOSITORY / top).rglob("*.py")
)

# Imports run one way. A part of the package imports from its own row and from the rows above it.
# Scripts (train, evaluate, benchmarks, every __main__.py and data/build.py, which is `python -m`
# by nature) stand below the last row and import whatever they need.
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
ENTRY_POINTS = ("tfmammo.data.build",)
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
MACHINES_FOLDERS = "|".join(("home", "root", "work", "tmp", "Users"))
MACHINE_PATH = re.compile(rf"(?<![\w.~}})-])/(?:{MACHINES_FOLDERS})(?![\w-])")


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


def arrow_faults(names: set[str], path: str) -> Iterator[str]:
    """Imports against the direction of the layers, and modules that are in no layer."""
    own = module_name(path)
    if not within(own, "tfmammo") or own in ("tfmammo", "tfmammo.__init__"):
        return
    if own == "tfmammo.__main__":
        return
    part = part_of(own)
    if part not in ROW:
        yield f"{own} is in no layer"
        return
    if own.endswith(".__main__") or own in ENTRY_POINTS:
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


@pytest.mark.parametrize("path", SOURCES)
def test_source_keeps_the_rules(path):
    assert faults(path, (REPOSITORY / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "line", "fault"),
    [
        ("tfmammo/models/can.py", "from . import cgan", "tfmammo.models may not import"),
        ("tfmammo/models/can.py", "import tfmammo.archives.phantom", "tfmammo.models may not"),
        ("tfmammo/metrics/x.py", "from tfmammo.apps.studio import app", "tfmammo.metrics may not"),
        ("tfmammo/helpers.py", "import os", "tfmammo.helpers is in no layer"),
        ("tfmammo/apps/x.py", "from tfmammo.apps.studio import __main__", "tfmammo.apps.x may not"),
        ("train/can.py", "import mlflow", "mlflow belongs in tfmammo/tracking/"),
        ("tfmammo/config/parsing.py", "import yaml as y\ny.full_load('')", "yaml.full_load: only"),
        ("tfmammo/nn/x.py", "import tensorflow as tf\ntf.keras.layers", "tensorflow.keras: write"),
        ("evaluate/segmentation.py", "from joblib import load", "joblib.load: a pickle"),
        ("tfmammo/data/patches.py", "np.load('x', allow_pickle=True)", "allow_pickle: a pickle"),
        ("train/can.py", "__import__('x')", "__import__: no import by string"),
        ("tfmammo/nn/losses.py", "#\n" * LONGEST, "501 lines, 500 at most"),
    ],
)
def test_a_broken_rule_is_found(path, line, fault):
    found = faults(path, f'"""A module."""\n{line}')
    assert len([sentence for sentence in found if sentence.startswith(fault)]) == 1, found


def test_the_package_holds_no_other_loose_module():
    loose = {path.stem for path in (REPOSITORY / "tfmammo").glob("*.py")}
    loose -= {"__init__", "__main__"}
    packages = {path.parent.name for path in (REPOSITORY / "tfmammo").glob("*/__init__.py")}
    assert loose | packages == set(ROW)


def test_packages_form_no_circle():
    targets: dict[str, set[str]] = {}
    for path in SOURCES:
        own = module_name(path)
        is_command = own.endswith(".__main__") or own in ENTRY_POINTS
        if path.startswith("tfmammo/") and not is_command:
            names = uses(ast.parse((REPOSITORY / path).read_text(encoding="utf-8")), path)
            parts = {part_of(name) for name in names if within(name, "tfmammo")}
            targets.setdefault(part_of(own), set()).update(parts & set(ROW) - {part_of(own)})

    def visit(part: str, way: tuple[str, ...]) -> None:
        assert part not in way, f"a circle: {' -> '.join((*way, part))}"
        for target in targets.get(part, ()):
            visit(target, (*way, part))

    for part in targets:
        visit(part, ())


@cache
def defined_names(module: str) -> frozenset[str]:
    """What a module of the package binds outside its functions and classes."""
    file = (REPOSITORY / module.replace(".", "/")).with_suffix(".py")
    file = file if file.is_file() else file.with_suffix("") / "__init__.py"
    found: set[str] = set()
    statements: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while statements:
        node = statements.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        else:
            statements.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def test_every_imported_name_exists():
    """An import inside a long test would otherwise fail where nobody looks in time."""
    found = {}
    tests = [path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("tests/**/*.py")]
    for path in (*SOURCES, *tests):
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        for _, name in imports(tree, path):
            module, _, last = name.rpartition(".")
            file = REPOSITORY / name.replace(".", "/")
            if file.is_dir() or file.with_suffix(".py").is_file() or not within(module, "tfmammo"):
                continue
            if not {last, "__getattr__"} & defined_names(module):
                found.setdefault(path, []).append(name)
    assert found == {}


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

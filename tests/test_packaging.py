"""What setup.py promises, and what README.md, configs/, .ci/run and
.pre-commit-config.yaml say of it.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tfmammo
from tests.test_docs import read_setup
from tfmammo import cli, shipped

REPOSITORY = Path(__file__).resolve().parents[1]
# Where the name to import is not the name to install.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "apache_beam": "apache-beam",
    "cv2": "opencv-python-headless",
    "libjpeg": "pylibjpeg-libjpeg",
    "markdown_it": "markdown-it-py",
    "object_detection": "tf-models-research-object-detection",
    "official": "tf-models-official",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Required, though nothing imports them by name: pydicom's decoders, pandas' reader of .xls,
# MLflow's system metrics, and what tensorflow-hub needs.
UNSEEN = {"pylibjpeg", "pylibjpeg-openjpeg", "xlrd", "psutil", "setuptools"}
# Imported within the one function that needs them, and brought by an extra: an old Excel table,
# which only tests ask for, clusters, COCO's average precision, ONNX files, servers, PACS.
OPTIONAL = {
    *("xlwt", "apache-beam", "pycocotools", "gradio", "fastapi", "starlette", "uvicorn"),
    *("prometheus-client", "dicomweb-client", "pynetdicom", "requests", "onnxruntime", "tf2onnx"),
}
# Likewise, but nothing that the tests' environment must hold: tests of it are marked `detection`.
DETECTION = {"tf-models-research-object-detection", "tf-models-official", "tf-keras"}
# Likewise: torch reads PyTorch's own files of published weights, and a golden file holds what it
# makes of them.
BENCHMARK = {"torch"}


@pytest.fixture(scope="module")
def package():
    """The arguments that setup.py hands to setuptools."""
    return read_setup()


def names(requirements):
    """What is installed, in the index's spelling."""
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def imported(*folders):
    """The distributions that the sources in these folders import, the standard library and our own
    skipped.

    What makes a golden file runs by hand, and says at its head what it needs.
    """
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    modules = set()
    for path in paths:
        if path.parent.name == "golden":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    own = {"tfmammo", "tests", *(path.stem for path in (REPOSITORY / "benchmarks").glob("*.py"))}
    others = modules - {*sys.stdlib_module_names, *own}
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in others}


def test_every_folder_of_sources_is_installed(package):
    sources = REPOSITORY / "tfmammo"
    folders = {path.parent.relative_to(REPOSITORY).as_posix() for path in sources.rglob("*.py")}
    scripts = {
        f"tfmammo.{shipped.FOLDER}.{name}": name for name in ("configs", "train", "evaluate")
    }
    assert package["package_dir"] == scripts
    assert {name.replace(".", "/") for name in {*package["packages"]} - {*scripts}} == folders
    assert package["package_data"][f"tfmammo.{shipped.FOLDER}.configs"] == ["*.yaml"]
    files = {path for path in sources.rglob("*") if path.is_file()}
    patterns = package["package_data"]["tfmammo"]
    installed = {path for pattern in patterns for path in sources.glob(pattern)}
    assert installed == {path for path in files if path.suffix not in (".py", ".pyc")}
    assert sources / "py.typed" in files and package["version"] == tfmammo.__version__


@pytest.mark.slow
def test_a_wheel_finds_its_configs_and_scripts_without_the_checkout(tmp_path):
    folders = ("configs", "train", "evaluate")
    source = tmp_path / "source"
    for folder in ("tfmammo", *folders):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)

    def run(program, folder, path=""):
        environment = {**os.environ, "PYTHONPATH": str(path)}
        options = {"cwd": folder, "env": environment, "check": True, "capture_output": True}
        return subprocess.run([sys.executable, "-c", program], text=True, **options).stdout

    run("from setuptools import build_meta; build_meta.build_wheel('..')", source)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    installed = site / "tfmammo" / shipped.FOLDER
    for folder in folders:
        names = {path.name for path in (REPOSITORY / folder).iterdir() if path.is_file()}
        assert {path.name for path in (installed / folder).iterdir()} == names
    program = "from tfmammo import config, shipped; print(shipped.ROOT, config.load('unet').name)"
    assert run(program, tmp_path, site).split() == [str(installed), "unet"]
    (entry_points,) = site.glob("tfmammo-*.dist-info/entry_points.txt")
    assert "tfmammo = tfmammo.__main__:main" in entry_points.read_text(encoding="utf-8")


def test_tensorflows_range_is_that_of_the_gpu_build(package):
    core, gpu = (
        next(Requirement(line) for line in lines if line.startswith("tensorflow"))
        for lines in (package["install_requires"], package["extras_require"]["gpu"])
    )
    assert gpu.extras == {"and-cuda"}
    versions = ("2.19.1", "2.20.0", "2.21.0", "2.22.0")
    for one in (core, gpu):
        assert [version in one.specifier for version in versions] == [False, True, True, False]


def test_every_extra_that_an_error_names_brings_the_package(package):
    extras = package["extras_require"]
    for module, extra in cli.EXTRAS.items():
        name = canonicalize_name(DISTRIBUTIONS.get(module, module))
        assert name in names(extras[extra]), module
    every = {line for name, lines in extras.items() if name != "all" for line in lines}
    assert set(extras["all"]) == every and len(extras["all"]) == len(every)


def test_every_import_is_a_requirement(package):
    core, extras = names(package["install_requires"]), package["extras_require"]
    sources = imported("tfmammo", "train", "evaluate")
    assert sources - core <= OPTIONAL | DETECTION | BENCHMARK
    assert core - sources <= UNSEEN
    assert names(extras["test"]) >= OPTIONAL
    assert names(extras["detection"]) >= DETECTION
    assert names(extras["benchmark"]) >= BENCHMARK
    assert imported("tests") <= core | names(extras["test"])


def test_the_lock_file_of_the_image_has_what_setup_asks_for_with_hashes_and_names_no_index(package):
    text = read("requirements.lock")
    line = r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}"
    pinned = dict(re.findall(line, text, re.MULTILINE))
    assert len(pinned) == len(re.findall(r"==", text)) and "://" not in text
    wanted = [*package["install_requires"], *package["extras_require"]["serve"]]
    for one in map(Requirement, wanted):
        version = pinned[canonicalize_name(one.name)]
        assert one.specifier.contains(version, prereleases=True), one
    assert "--require-hashes -r requirements.lock" in read("Dockerfile")


def test_the_image_gets_every_folder_that_setup_installs(package):
    folders = {*package["package_dir"].values(), "tfmammo"}
    assert folders <= {*re.findall(r"^COPY (\w+) \1$", read("Dockerfile"), re.MULTILINE)}
    assert folders <= {*re.findall(r"^!(\w+)$", read(".dockerignore"), re.MULTILINE)}


def read(name):
    """Read a file of the repository's top level."""
    return (REPOSITORY / name).read_text(encoding="utf-8")

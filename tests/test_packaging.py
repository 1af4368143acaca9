"""What setup.py promises, and what README.md, configs/, .ci/run and
.pre-commit-config.yaml say of it.
"""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tfmammo
from tfmammo import cli, shipped

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.name for path in (REPOSITORY / "configs").glob("*.yaml"))
EXTRAS = {
    "beam",
    "gpu",
    "detection",
    "serve",
    "benchmark",
    "docs",
    "onnx",
    "pacs",
    "test",
    "all",
}
# Where the name to import is not the name to install.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "apache_beam": "apache-beam",
    "cv2": "opencv-python-headless",
    "libjpeg": "pylibjpeg-libjpeg",
    "object_detection": "tf-models-research-object-detection",
    "official": "tf-models-official",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Required, though nothing imports them by name: pydicom's decoders, pandas' reader of .xls,
# MLflow's system metrics, and what tensorflow-hub needs.
UNSEEN = {"pylibjpeg", "pylibjpeg-openjpeg", "xlrd", "psutil", "setuptools"}
# Imported within the one function that needs them: an old Excel table, which only tests ask for,
# clusters, COCO's average precision, and ONNX files.
OPTIONAL = {
    "xlwt",
    "apache-beam",
    "pycocotools",
    "gradio",
    "fastapi",
    "starlette",
    "uvicorn",
    "prometheus-client",
    "dicomweb-client",
    "pynetdicom",
    "requests",
    "onnxruntime",
    "tf2onnx",
}
# Likewise, but nothing that the tests' environment must hold: tests of it are marked `detection`.
DETECTION = {"tf-models-research-object-detection", "tf-models-official", "tf-keras"}
# Likewise: torch reads PyTorch's own files of published weights, and a golden file holds what it
# makes of them.
BENCHMARK = {"torch"}


@pytest.fixture(autouse=True)
def float32_policy():
    """In place of the fixture for all tests: nothing here touches Keras, so nothing
    waits for it.
    """


@pytest.fixture(scope="module")
def package():
    """The arguments that setup.py hands to setuptools."""
    with pytest.MonkeyPatch.context() as patch:
        arguments = {}
        patch.setattr(setuptools, "setup", arguments.update)
        patch.chdir(REPOSITORY)
        runpy.run_path("setup.py")
    return arguments


def names(requirements):
    """What is installed, in the index's spelling."""
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def imported(*folders):
    """The distributions that the sources in these folders import, the standard library and our own
    left out.

    What makes a golden file runs by hand, beside the package that it is made with, and says at its
    head what it needs.
    """
    modules = set()
    for path in (
        path
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*.py")
        if path.parent.name != "golden"
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    own = {"tfmammo", "tests", *(path.stem for path in (REPOSITORY / "benchmarks").glob("*.py"))}
    return {
        canonicalize_name(DISTRIBUTIONS.get(module, module))
        for module in modules - {*sys.stdlib_module_names, *own}
    }


def test_version_is_the_packages(package):
    assert package["version"] == tfmammo.__version__


def test_every_folder_of_sources_is_installed(package):
    folders = {
        path.parent.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "tfmammo").rglob("*.py")
    }
    scripts = {
        f"tfmammo.{shipped.FOLDER}.{name}": name for name in ("configs", "train", "evaluate")
    }
    assert package["package_dir"] == scripts
    assert {name.replace(".", "/") for name in {*package["packages"]} - {*scripts}} == folders
    assert package["package_data"][f"tfmammo.{shipped.FOLDER}.configs"] == ["*.yaml"]
    files = {
        path.relative_to(REPOSITORY / "tfmammo").as_posix()
        for path in (REPOSITORY / "tfmammo").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    found = [(REPOSITORY / "tfmammo").glob(name) for name in package["package_data"]["tfmammo"]]
    installed = {
        path.relative_to(REPOSITORY / "tfmammo").as_posix() for paths in found for path in paths
    }
    assert installed == files and "py.typed" in files


@pytest.mark.slow
def test_a_wheel_finds_its_configs_and_scripts_without_the_checkout(tmp_path):
    folders = ("configs", "train", "evaluate")
    source = tmp_path / "source"
    for folder in ("tfmammo", *folders):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    installed = tmp_path / "site" / "tfmammo" / shipped.FOLDER
    for folder in folders:
        names = {path.name for path in (REPOSITORY / folder).iterdir() if path.is_file()}
        assert {path.name for path in (installed / folder).iterdir()} == names
    program = "from tfmammo import config, shipped; print(shipped.ROOT, config.load('unet').name)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(installed), "unet"]
    (entry_points,) = (tmp_path / "site").glob("tfmammo-*.dist-info/entry_points.txt")
    assert "tfmammo = tfmammo.__main__:main" in entry_points.read_text(encoding="utf-8")


def test_python_3_11_and_later(package):
    assert "3.11.0" in Requirement(f"python{package['python_requires']}").specifier
    assert "3.10.9" not in Requirement(f"python{package['python_requires']}").specifier


@pytest.mark.parametrize(
    ("version", "admitted"),
    [("2.19.1", False), ("2.20.0", True), ("2.21.0", True), ("2.22.0", False)],
)
def test_tensorflows_range_is_that_of_the_gpu_build(package, version, admitted):
    (core,) = (
        Requirement(line) for line in package["install_requires"] if line.startswith("tensorflow>")
    )
    (gpu,) = (Requirement(line) for line in package["extras_require"]["gpu"])
    assert gpu.extras == {"and-cuda"}
    assert (version in core.specifier, version in gpu.specifier) == (admitted, admitted)


def test_every_extra_that_an_error_names_brings_the_package(package):
    for module, extra in cli.EXTRAS.items():
        name = canonicalize_name(DISTRIBUTIONS.get(module, module))
        assert name in names(package["extras_require"][extra]), module


def test_all_is_the_union_of_the_extras(package):
    extras = package["extras_require"]
    assert set(extras) == EXTRAS
    assert set(extras["all"]) == {
        line for name, lines in extras.items() if name != "all" for line in lines
    }
    assert len(extras["all"]) == len(set(extras["all"]))


def test_every_import_is_a_core_requirement(package):
    assert (
        imported("tfmammo", "train", "evaluate") - names(package["install_requires"])
        <= OPTIONAL | DETECTION | BENCHMARK
    )
    assert names(package["extras_require"]["test"]) >= OPTIONAL
    assert names(package["extras_require"]["detection"]) >= DETECTION
    assert names(package["extras_require"]["benchmark"]) >= BENCHMARK


def test_every_import_of_the_tests_comes_with_the_test_extra(package):
    assert (
        imported("tests")
        - names([*package["install_requires"], *package["extras_require"]["test"]])
        == set()
    )


def test_no_core_requirement_is_left_over(package):
    assert names(package["install_requires"]) - imported("tfmammo", "train", "evaluate") <= UNSEEN


def test_the_readme_opens_with_the_two_commands(package):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    train = "pip install -e . && tfmammo train can --config quickstart"
    test = 'pip install -e ".[test]" && pytest'
    assert 0 < readme.find(train) < readme.find(test)
    assert package["long_description"] == readme


def test_the_readmes_configs_are_there():
    assert {"quickstart.yaml", "can.yaml"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_opens_with_its_command(name):
    head = re.match(
        r"(?:#.*\n)*", (REPOSITORY / "configs" / name).read_text(encoding="utf-8")
    ).group()
    commands = re.findall(
        r"(python (?:train|evaluate)/\w+\.py|tfmammo [\w-]+)(?: \w+)?(?: --study \w+)? --config "
        rf"configs/{re.escape(name)}\b",
        head,
    )
    assert commands, f"the first lines are no comment with a command:\n{head}"
    for program, target in map(str.split, commands):
        known = (
            (REPOSITORY / target).is_file() if program == "python" else target in shipped.COMMANDS
        )
        assert known, f"{program} {target}"


def test_ci_can_be_run_and_takes_the_readmes_steps():
    script = REPOSITORY / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert os.access(script, os.X_OK)
    installs = [line.strip() for line in lines if " install " in line and "apt-get" not in line]
    assert len(installs) == 2
    assert all('-e ".[test,detection]"' in line for line in installs)
    ordinary, long = (line for line in lines if line.startswith("pytest"))
    assert ordinary == "pytest -n 2 --dist loadfile --durations 20 --max-memory 4"
    # with what pytest itself leaves out
    assert long.endswith('--max-memory 4 -m "long and not nightly"')
    assert any(line.startswith("python benchmarks/mutants.py --sample 10 --seed") for line in lines)


def test_the_hooks_run_the_ruff_of_the_test_extra(package):
    (ruff,) = (line for line in package["extras_require"]["test"] if line.startswith("ruff"))
    assert f'"{ruff}"' in (REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8")


def test_the_lock_file_of_the_image_has_what_setup_asks_for_with_hashes_and_names_no_index(package):
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    pinned = dict(
        re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    )
    assert len(pinned) == len(re.findall(r"==", text)) and "://" not in text
    for wanted in map(
        Requirement, [*package["install_requires"], *package["extras_require"]["serve"]]
    ):
        assert wanted.specifier.contains(
            pinned[canonicalize_name(wanted.name)], prereleases=True
        ), wanted
    assert "--require-hashes -r requirements.lock" in read("Dockerfile")


def test_the_image_gets_every_folder_that_setup_installs(package):
    folders = {*package["package_dir"].values(), "tfmammo"}
    assert folders <= {*re.findall(r"^COPY (\w+) \1$", read("Dockerfile"), re.MULTILINE)}
    assert folders <= {*re.findall(r"^!(\w+)$", read(".dockerignore"), re.MULTILINE)}


def read(name):
    """Read a file of the repository's top level."""
    return (REPOSITORY / name).read_text(encoding="utf-8")

"""tfmammo's packaging; pyproject.toml holds the tools' settings alone."""

from pathlib import Path

from setuptools import find_packages, setup

TENSORFLOW = ">=2.20,<2.22"  # tried: 2.20 and 2.21

CORE = [
    f"tensorflow{TENSORFLOW}",
    "keras>=3.12",
    "numpy>=2",
    "pydantic>=2.7",
    "pydantic-core",
    "pyyaml",
    "pydicom>=3",
    "pylibjpeg",  # pydicom finds these three by itself: JPEG lossless and JPEG 2000 pixels
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "highdicom>=0.28",  # DICOM segmentations
    "opencv-python-headless",
    "omidb>=0.13.1",  # reads OMI-DB's own files
    "scikit-image",
    "scipy>=1.15",
    "xlrd",
    "mlflow>=3.17,<4",
    "sqlalchemy",
    "portalocker>=3",  # locks on every system
    "psutil",  # MLflow's system metrics
    "rich",
    "markdown-it-py>=4",  # pages of HTML
    "matplotlib",
    "pillow",
    "scikit-learn",
    "tensorflow-hub>=0.16.1",
    "setuptools<82",  # tensorflow-hub imports pkg_resources, which 82 removed
]

BEAM = ["apache-beam>=2.77"]
# the studio; the server beside MLflow's
SERVE = ["gradio>=6", "fastapi", "starlette", "uvicorn", "prometheus-client"]
PACS = ["dicomweb-client>=0.60", "pynetdicom>=3", "requests"]  # DICOMweb; DIMSE
ONNX = ["onnx", "onnxruntime", "tf2onnx"]
DOCS = ["mkdocs-material", "mkdocstrings[python]", "mkdocs-jupyter"]

EXTRAS = {
    "beam": BEAM,
    "gpu": [f"tensorflow[and-cuda]{TENSORFLOW}"],
    "detection": [
        "tf-models-official==2.20.*",  # holds TensorFlow at 2.20
        # left open, the resolver takes 2.5, which is too old
        "tf-models-research-object-detection==2.8.0.post1",
        "tf-keras",
        "protobuf<7",
    ],
    "serve": SERVE,
    "pacs": PACS,
    "onnx": ONNX,
    "benchmark": [*ONNX, "torch", "onnxscript", "lpips"],
    "docs": DOCS,
    "test": [
        *BEAM,
        *SERVE,
        *PACS,
        *DOCS,
        "playwright",  # its client alone: the browser is the system's chromium
        "cryptography",
        "pytest>=9",
        "pytest-timeout",
        "pytest-xdist",
        "httpx",
        "hypothesis",
        *ONNX,
        "h5py",
        "packaging",
        "pycocotools",
        "ruff==0.17.*",
        "mypy==2.4.*",
        "xlwt",
    ],
}
# configs/, train/ and evaluate/ stay at the top of the repository. A wheel has them in here, where
# tfmammo/shipped.py finds them.
SHIPPED = {f"tfmammo.repository.{folder}": folder for folder in ("configs", "train", "evaluate")}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="tfmammo",
    version="0.1.0",
    description="GAN-based synthesis and segmentation of breast lesions in mammograms, in "
    "TensorFlow",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",  # no TensorFlow above is for Python 3.14
    packages=[*find_packages(include=["tfmammo*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "tfmammo": [
            "py.typed",
            "apps/report/*.csv",
            "apps/report/*.md",
            "apps/report/*.yaml",
            "metrics/printed.json",
            "tracking/zoo/networks/*",
            "apps/demo/*.jpg",
            "apps/demo/*.png",
        ],
        "tfmammo.repository.configs": ["*.yaml"],
    },
    entry_points={"console_scripts": ["tfmammo = tfmammo.__main__:main"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
)

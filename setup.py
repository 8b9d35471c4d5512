"""Package metadata. What an installed environment looks like beside it: constraints.txt and the Makefile."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "nnunet_kd" / "__init__.py").read_text(), re.MULTILINE).group(1)
README = ROOT / "README.md"

setup(
    name="nnunet-kd",
    version=VERSION,
    description="Distil a trained nnU-Net into a light student that stock nnU-Net can load",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # trainers/ stays at the top level, where readers look for it, and is installed inside the package, so that
    # `nnunet-kd trainers-path` can name it for nnUNet_extTrainer wherever the package lies.
    packages=[*find_packages(include=["nnunet_kd*"]), "nnunet_kd.trainers"],
    package_dir={"nnunet_kd.trainers": "trainers"},
    package_data={
        "nnunet_kd": ["py.typed"],
        "nnunet_kd.evaluation.report": ["templates/*.j2"],
        "nnunet_kd.deploy.runner": ["requirements.txt", "README.md"],  # the export copies them with the runner
    },
    entry_points={"console_scripts": ["nnunet-kd = nnunet_kd.cli.main:main"]},
    install_requires=[
        # 2.8 is the first with nnUNet_extTrainer and the present signature of build_network_architecture; the trainers
        # override methods that nnU-Net does not promise to keep, so the next minor version has to be checked first.
        "nnunetv2>=2.8,<2.9",
        # Safe loading has to accept one numpy function under the names of numpy 1.x and 2.x; 2.6 is known to.
        "torch>=2.6",
        # What follows comes with nnunetv2. It is named here because this package imports it itself, with nnunetv2's own
        # lower bounds where it has any: tighter ones could contradict nnunetv2's.
        "dynamic-network-architectures",  # nnU-Net's networks: which classes plans may name
        "numpy>=1.24",  # arrays; 1.24 for nnunetv2, tested with 2.x
        "scipy",  # statistics of the report, distance transforms, spline fields of the synthetic vessels
        "scikit-learn",  # t-SNE of the semantic vectors
        "scikit-image>=0.19.3",  # resizing, skeletons, PNG and TIFF files
        "matplotlib",  # pictures of the report and of the loss terms
        "SimpleITK>=2.2.1",  # 3-D images
        "pillow",  # reads the vessel sets' GIF masks, and PNG for the runner
        "tifffile",  # TIFF files of the runner
        "tqdm",  # progress of long runs
        # Not brought by nnunetv2:
        "PyYAML>=6",  # the comparison's file: people write it, so it needs comments and few brackets, which JSON lacks
        "jinja2>=3",  # the report's HTML; torch needs it too
        # nnunetv2 imports distutils while preprocessing, which Python 3.12 dropped and setuptools still supplies.
        "setuptools; python_version >= '3.12'",
    ],
    extras_require={
        # writing ONNX (torch.onnx.export needs onnxscript; the file is run before it appears), and nnunet-kd predict
        "onnx": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.20"],
        # OpenVINO IR, the fastest on Intel CPUs; nncf makes int8 out of it
        "openvino": ["openvino>=2025.0", "nncf>=2.15"],
        # comparisons on a Slurm cluster
        "slurm": ["submitit>=1.5"],
        # pytest-xdist: the tests on two cores. setuptools: one test builds the wheel in the environment itself.
        # monai: the oracle of the metrics' tests. import-linter: which folder may import which,
        # mypy: whether the types of losses, config, networks, views and metrics hold (both in `make lint`).
        # hypothesis: draws shapes, spacings and label sets that nobody thinks of.
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "import-linter>=2",
            "mypy>=1.15",
            "setuptools>=70.1",
            "monai>=1.4",
            "hypothesis>=6.100",
            "nnunet-kd[onnx,openvino,slurm]",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)

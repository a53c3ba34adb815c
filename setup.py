"""Packaging of jseg. Every range below was tried at both ends that its comment names, or is a pin with its reason."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "jseg/__init__.py").read_text()).group(1)

setup(
    name="jseg",
    version=VERSION,
    description="Semantic segmentation for Jittor: SegNeXt with its own CPU and CUDA kernels",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9,<3.13",  # NumPy 1.26, the last that Jittor can use, has no wheels for 3.13
    packages=find_packages(include=["jseg", "jseg.*"]),
    package_data={"jseg": ["*.cc"], "jseg.ops": ["*/*.cc", "*/*.cuh", "*/*.h"], "jseg.convert": ["*.yaml", "*.json"]},
    install_requires=[
        "jittor==1.3.11.0",              # the framework; its traps were measured on exactly this release
        "numpy>=1.26.4,<2",              # Jittor corrupts arrays with NumPy 2
        "onednn-devel-cpu-gomp==2021.2.0; sys_platform == 'linux' and platform_machine == 'x86_64'",  # oneDNN 2.2, the one Jittor wants
        "opencv-python-headless>=4.9,<4.12",  # image files, resizing; 4.12 pulls NumPy 2
        "Pillow>=10.4,<14",              # palette PNGs, EXIF, GIF, 16-bit TIFF
        "PyYAML>=6.0.1,<7",              # configs
        "safetensors>=0.4.3,<0.9",       # weights files
        "tqdm>=4.66,<5",                 # progress bars
    ],
    extras_require={
        "test": ["pytest>=8,<10"],
        "tensorboard": ["tensorboardX>=2.6,<3"],
    },
    entry_points={"console_scripts": ["jseg = jseg.cli:main"]},
)

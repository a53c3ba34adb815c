"""Packaging of jseg. docs/matrix.md says what of each range was tried; a pin has its reason beside it.

The distribution is called jseg-jittor: `jseg` on PyPI is an unrelated word segmenter. The import name is `jseg`.
"""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "jseg/__init__.py").read_text(encoding="utf-8")).group(1)


class BuildWithConfigs(build_py):
    """Put configs/ into a wheel, as jseg/configs; an editable install uses the checkout's own."""

    def run(self):
        """Copy the packages' files, then the configs."""
        super().run()
        if not getattr(self, "editable_mode", False):
            shutil.copytree(HERE / "configs", pathlib.Path(self.build_lib) / "jseg" / "configs", dirs_exist_ok=True)


setup(
    name="jseg-jittor",
    version=VERSION,
    description="Semantic segmentation for Jittor: SegNeXt with its own CPU and CUDA kernels",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9,<3.15",
    packages=find_packages(include=["jseg", "jseg.*"]),
    package_data={"jseg": ["*.cc"], "jseg.bench": ["*.json"], "jseg.ops": ["*/*.cc", "*/*.cuh", "*/*.h"],
                  "jseg.convert": ["*.yaml", "*.json"], "jseg.models.text_encoders": ["*.gz"],
                  "jseg.serve": ["page.*"]},
    cmdclass={"build_py": BuildWithConfigs},
    # A path, not a finder: in the folder that holds the clone, a finder comes too late.
    options={"editable_wheel": {"mode": "compat"}},
    install_requires=[
        # The framework; its traps were measured on exactly this release. Its own metadata forbid NumPy 2, which jseg
        # makes it work with, and no NumPy 1 has wheels for Python 3.13: there,
        # `pip install --no-deps jittor==1.3.11.0` comes second.
        "jittor==1.3.11.0; python_version < '3.13'",
        "astunparse>=1.6.3,<2",          # what Jittor itself needs, where it is installed without its dependencies
        "numpy>=1.26.4,<3",
        # oneDNN 2.2, the one Jittor wants
        "onednn-devel-cpu-gomp==2021.2.0; sys_platform == 'linux' and platform_machine == 'x86_64'",
        # image files, resizing; 5.0 rounds nearest neighbours otherwise, so rotated masks are not MMSegmentation's
        "opencv-python-headless>=4.9,<5",
        "Pillow>=10.4,<14",              # palette PNGs, EXIF, GIF, 16-bit TIFF
        "PyYAML>=6.0.1,<7",              # configs
        "safetensors>=0.4.3,<0.9",       # weights files
        "tqdm>=4.66,<5",                 # progress bars
    ],
    extras_require={
        "test": ["pytest>=8,<10", "pyflakes>=3.2,<4", "onnx>=1.16,<2", "onnxruntime>=1.18,<2", "flask>=3,<4",
                 "waitress>=3.0.1,<4"],
        "tensorboard": ["tensorboardX>=2.6,<3"],  # the loggers of train_cfg.loggers
        "wandb": ["wandb>=0.22,<1"],  # tried: 0.22.0, 0.31.0
        "mlflow": ["mlflow>=2.22,<4"],  # tried: 2.22.0, 3.17.2
        # `jseg export ... model.onnx` and running such files; tried: onnx 1.23.2, onnxruntime 1.32.0
        "onnx": ["onnx>=1.16,<2", "onnxruntime>=1.18,<2"],
        "geo": ["rasterio>=1.3,<2"],  # GeoTIFF, rasters in windows, compressions of GDAL; tried: 1.4.4
        "serve": ["flask>=3,<4", "waitress>=3.0.1,<4"],  # `jseg serve`; tried: Flask 3.1.3, waitress 3.0.2
        "openvino": ["openvino>=2024.4"],  # --runtime openvino; tried: 2026.4.1
    },
    entry_points={"console_scripts": ["jseg = jseg.cli:main"]},
)

"""Pictures and masks on disk become batches. NumPy, OpenCV and Pillow only: nothing in here imports Jittor."""

from jseg.data import datasets, transforms  # noqa: F401  (enter their classes in the registries)
from jseg.data.build import build_dataset, build_loader
from jseg.data.loader import Loader
from jseg.data.preprocess import Batch, SegDataPreProcessor

__all__ = ["Batch", "Loader", "SegDataPreProcessor", "build_dataset", "build_loader", "datasets", "transforms"]

"""Transforms with MMSegmentation 1.x's names and meaning, on NumPy arrays; importing this registers them all."""

from jseg.data.transforms.bands import BandDistortion, LoadBands
from jseg.data.transforms.base import Transform
from jseg.data.transforms.classify import CenterCrop, RandomErasing, RandomResizedCrop
from jseg.data.transforms.color import CLAHE, AdjustGamma, Normalize, PhotoMetricDistortion
from jseg.data.transforms.compose import Compose
from jseg.data.transforms.geometric import Pad, RandomCrop, RandomCutOut, RandomFlip, RandomRotate
from jseg.data.transforms.loading import LoadAnnotations, LoadImageFromFile, PackSegInputs
from jseg.data.transforms.mosaic import RandomMosaic
from jseg.data.transforms.pillow_resize import PillowResize
from jseg.data.transforms.rand_augment import RandAugment
from jseg.data.transforms.resize import RandomChoiceResize, RandomResize, Resize, ResizeShortestEdge, ResizeToMultiple

__all__ = ["AdjustGamma", "BandDistortion", "CLAHE", "CenterCrop", "Compose", "LoadAnnotations", "LoadBands",
           "LoadImageFromFile", "Normalize", "PackSegInputs", "Pad", "PhotoMetricDistortion", "PillowResize",
           "RandAugment", "RandomChoiceResize", "RandomCrop", "RandomCutOut", "RandomErasing", "RandomFlip",
           "RandomMosaic", "RandomResize", "RandomResizedCrop", "RandomRotate", "Resize", "ResizeShortestEdge",
           "ResizeToMultiple", "Transform"]

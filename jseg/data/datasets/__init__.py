"""Datasets: one file each with class names, colours and layout; `DATASETS.build({type: CamVidDataset, ...})` makes one."""

from jseg.data.datasets.ade20k import ADE20KDataset
from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.camvid import CamVidDataset
from jseg.data.datasets.cityscapes import CityscapesDataset
from jseg.data.datasets.coco_stuff import COCOStuffDataset
from jseg.data.datasets.folder import FolderDataset
from jseg.data.datasets.isaid import iSAIDDataset
from jseg.data.datasets.pascal_context import PascalContextDataset, PascalContextDataset59
from jseg.data.datasets.pascal_voc import PascalVOCDataset
from jseg.data.datasets.wrappers import ConcatDataset, RepeatDataset

__all__ = ["SegDataset", "ADE20KDataset", "CamVidDataset", "CityscapesDataset", "COCOStuffDataset", "FolderDataset", "iSAIDDataset",
           "PascalContextDataset", "PascalContextDataset59", "PascalVOCDataset", "ConcatDataset", "RepeatDataset"]

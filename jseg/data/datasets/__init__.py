"""Datasets: one file each with class names, colours and layout;
`DATASETS.build({type: CamVidDataset, ...})` makes one.
"""

import importlib
import pkgutil

from jseg.data.datasets.ade20k import ADE20KDataset
from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.bdd100k import BDD100KDataset
from jseg.data.datasets.camvid import CamVidDataset
from jseg.data.datasets.chase_db1 import ChaseDB1Dataset
from jseg.data.datasets.cityscapes import CityscapesDataset
from jseg.data.datasets.coco_stuff import COCOStuffDataset
from jseg.data.datasets.dark_zurich import DarkZurichDataset
from jseg.data.datasets.drive import DRIVEDataset
from jseg.data.datasets.folder import FolderDataset
from jseg.data.datasets.hrf import HRFDataset
from jseg.data.datasets.hsi_drive import HSIDrive20Dataset
from jseg.data.datasets.image_folder import ImageFolder
from jseg.data.datasets.isaid import iSAIDDataset
from jseg.data.datasets.levircd import LEVIRCDDataset
from jseg.data.datasets.lip import LIPDataset
from jseg.data.datasets.loveda import LoveDADataset
from jseg.data.datasets.mapillary import MapillaryDataset_v1, MapillaryDataset_v2
from jseg.data.datasets.night_driving import NightDrivingDataset
from jseg.data.datasets.nyu import NYUDataset
from jseg.data.datasets.pascal_context import PascalContextDataset, PascalContextDataset59
from jseg.data.datasets.pascal_voc import PascalVOCDataset
from jseg.data.datasets.potsdam import PotsdamDataset
from jseg.data.datasets.refuge import REFUGEDataset
from jseg.data.datasets.stare import STAREDataset
from jseg.data.datasets.synapse import SynapseDataset
from jseg.data.datasets.vaihingen import ISPRSDataset
from jseg.data.datasets.wrappers import ClassBalancedDataset, ConcatDataset, RepeatDataset

__all__ = ["ADE20KDataset", "SegDataset", "BDD100KDataset", "CamVidDataset", "ChaseDB1Dataset", "CityscapesDataset",
           "COCOStuffDataset", "DarkZurichDataset", "DRIVEDataset", "FolderDataset", "HRFDataset", "HSIDrive20Dataset",
           "ImageFolder", "iSAIDDataset", "LEVIRCDDataset", "LIPDataset", "LoveDADataset", "MapillaryDataset_v1",
           "MapillaryDataset_v2", "NightDrivingDataset", "NYUDataset", "PascalContextDataset", "PascalContextDataset59",
           "PascalVOCDataset", "PotsdamDataset", "REFUGEDataset", "STAREDataset", "SynapseDataset", "ISPRSDataset",
           "ClassBalancedDataset", "ConcatDataset", "RepeatDataset"]

for _file in pkgutil.iter_modules(__path__):  # a new file registers itself, with or without a line above
    importlib.import_module(f"{__name__}.{_file.name}")

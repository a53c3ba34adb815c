"""Pascal VOC 2012 with the extra masks of SBD ("VOC aug"): MATLAB masks become PNG, lists aug.txt and trainaug.txt.

Source: VOCtrainval_11-May-2012.tar (see voc2012.py) and benchmark.tgz, the Semantic Boundaries Dataset (Hariharan et
al., ICCV 2011). Licence: pictures under the terms of Flickr, annotations for research.
Expected raw tree (both archives, or a folder with both unpacked):
    VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/{train,val}.txt}
    benchmark_RELEASE/dataset/{cls/2008_000002.mat,train.txt,val.txt}
Command: python tools/convert_datasets/voc_aug.py VOCtrainval_11-May-2012.tar benchmark.tgz --out data/VOCdevkit/VOC2012
Expected counts: 11355 masks of SBD; trainaug.txt 10582 names (SBD and VOC train, without VOC val), aug.txt 9118 (those
beyond VOC train). Train on SegmentationClass with train.txt plus SegmentationClassAug with aug.txt. VOC train masks
that SBD lacks are put beside SBD's, so that trainaug.txt alone works as well.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np
from voc2012 import mask_items, read_lists

from jseg.data.prepare import IndexTable, Job, Report, Settings, command, convert_pair, pair_items
from jseg.data.prepare.matfile import matrix
from jseg.errors import ConvertError

OUT = "data/VOCdevkit/VOC2012"
EXPECTED = {"SegmentationClass": 2913, "SegmentationClassAug": None}
SBD_COUNT, TRAINAUG_COUNT, AUG_COUNT = 11355, 10582, 9118


def segmentation(data: bytes) -> np.ndarray:
    """Read GTcls.Segmentation of an SBD file as (H, W) uint8, 0 to 20."""
    return matrix(data, "GTcls", "Segmentation")


SBD_LABELS = IndexTable({label: label for label in range(21)}, reader=segmentation)


def check_count(job: Job, what: str, got: int, published: int) -> None:
    """Raise a ConvertError if a number is not the published one (unless partial)."""
    if got != published and not job.settings.partial:
        raise ConvertError(f"{job.source.where}: {got} {what}, {published} were published; the download is incomplete; "
                           "add --partial if this is what you have")


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert VOC 2012 and SBD in `src` to `out`."""
    with Job("voc_aug", src, out, EXPECTED, settings, archives="VOC|benchmark|SBD") as job:
        source, lists = job.source, read_lists(job)
        mats = {key[0]: name
                for key, name in source.find(r"cls/(\d{4}_\d{6})\.mat", "SBD masks (benchmark.tgz)").items()}
        listed = source.find(r"dataset/(train|val)\.txt", "lists of SBD (dataset/train.txt, val.txt)")
        sbd = {name for file in listed.values() for name in source.lines(file)}
        train, val = set(lists.get("train", ())), set(lists.get("val", ()))
        trainaug, aug = sorted((train | sbd) - val), sorted(sbd - train - val)
        for what, got, published in (("masks of SBD", len(mats), SBD_COUNT),
                                     ("pictures in trainaug", len(trainaug), TRAINAUG_COUNT),
                                     ("pictures in aug", len(aug), AUG_COUNT)):
            check_count(job, what, got, published)
        pictures = {key[0]: name for key, name in source.find(r"JPEGImages/(\w+)\.jpg", "pictures").items()}
        lacking = [name for name in {**mats, **dict.fromkeys(trainaug)} if name not in pictures
                   or (name in sbd and name not in mats)]
        if lacking:
            raise ConvertError(f"{source.where}: {len(lacking)} pictures of SBD lack picture or mask: "
                               f"{', '.join(lacking[:5])}; download it again")
        items = mask_items(job, sorted(train | val), also_aug=train - set(mats))
        items += pair_items([((pictures[name], mat), ("" if name in train | val else f"JPEGImages/{name}.jpg",
                                                      f"SegmentationClassAug/{name}.png"))
                             for name, mat in mats.items()], convert_pair, label=SBD_LABELS)
        return job.run(items, {f"ImageSets/Segmentation/{name}.txt": names for name, names in (
            ("train", lists.get("train", [])), ("val", lists.get("val", [])), ("trainaug", trainaug), ("aug", aug))})


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))

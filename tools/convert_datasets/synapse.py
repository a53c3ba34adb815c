"""Synapse abdomen scans (BTCV): slices as grey JPEG, masks of the 8 organs of TransUNet.

Source: www.synapse.org, project syn3193805, Abdomen/RawData (Landman et al., MICCAI workshop 2015); split of TransUNet
(arXiv 2102.04306). Licence: by registration.
Expected raw tree (folder or zip); the two lists come with TransUNet and MMSegmentation's instructions:
    {train,val}.txt: lines "img0005.nii.gz"      img/img0005.nii.gz      label/label0005.nii.gz
Command: python tools/convert_datasets/synapse.py synapse_raw --out data/synapse
Expected counts: 2211 train slices (18 scans) and 1568 val slices (12 scans).
Values are cut to -125..275 Hounsfield units and spread to 0..255; a slice is turned as MMSegmentation's script turns
it. JPEG as published.
"""

from __future__ import annotations

import io
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np
from PIL import Image

from jseg.data.prepare import IndexTable, Item, Job, Report, Settings, Source, Writer, command
from jseg.data.prepare.nifti import read_nifti
from jseg.errors import ConvertError, DataError

OUT = "data/synapse"
EXPECTED = {"img_dir/train": 2211, "ann_dir/train": 2211, "img_dir/val": 1568, "ann_dir/val": 1568}
LOW, HIGH = -125, 275  # Hounsfield units
# ids of BTCV -> aorta 1, gallbladder 2, left kidney 3, right kidney 4, liver 5, pancreas 6, spleen 7, stomach 8; the
# other organs are background
LABELS = IndexTable({**dict.fromkeys(range(14), 0), 8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8})


def convert_scan(item: Item, source: Source, writer: Writer) -> None:
    """Write all slices of one scan; `item.values` are the split and the number."""
    split, number = item.values
    scan, organs = (read_nifti(source.read(name), source.label(name)) for name in item.inputs)
    if len(scan.shape) != 3 or scan.shape != organs.shape:
        raise DataError(f"{source.label(item.inputs[0])} is {scan.shape} but its mask {source.label(item.inputs[1])} "
                        f"is {organs.shape}; both must be the same volume of three axes")
    for index in range(scan.shape[-1]):
        name = f"case{number}_slice{index:03d}"
        values, labels = scan.slice(index)[:, ::-1], organs.slice(index)[:, ::-1]  # (X, Y), the second axis reversed
        if not np.isfinite(values).all() or not (np.abs(labels) < 2 ** 31).all() or (labels != np.rint(labels)).any():
            raise DataError(f"{source.label(item.inputs[0])}: slice {index} holds values that are not finite, or its "
                            "mask labels that are not whole; "
                            "download both again")
        grey = (np.clip(values, LOW, HIGH) - LOW) / (HIGH - LOW) * 255
        buffer = io.BytesIO()
        Image.fromarray(grey.astype(np.float32)).convert("RGB").save(buffer, "JPEG")
        writer.data(f"img_dir/{split}/{name}.jpg", buffer.getvalue())
        writer.mask(f"ann_dir/{split}/{name}.png", LABELS.indices(labels.astype(np.int32),
                                                                  source.label(item.inputs[1])))


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert Synapse in `src` to `out`."""
    with Job("synapse", src, out, EXPECTED, settings) as job:
        scans = job.source.find(r"img/img(\d{4})\.nii(?:\.gz)?", "scans")
        masks = job.source.find(r"label/label(\d{4})\.nii(?:\.gz)?", "masks")
        lists = job.source.find(r"(train|val)\.txt", "lists (train.txt, val.txt)")
        job.need([split for split, in lists], ("train", "val"))
        items = []
        for (split,), listing in lists.items():
            for line in job.source.lines(listing):
                number = line[3:7]
                if (number,) not in scans or (number,) not in masks:
                    raise ConvertError(f"{job.source.label(listing)}: {line!r}: no img/img{number}.nii.gz or "
                                       f"label/label{number}.nii.gz; the download is incomplete")
                items.append(Item(scans[number,], convert_scan, (scans[number,], masks[number,]), (split, number)))
        return job.run(items)


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))

"""Turn a checkpoint of another library, or an MMSegmentation or JSeg config, into jseg's.

    jseg convert IN.pth OUT.safetensors                    config and class names come from inside the file
    jseg convert IN.pth OUT.safetensors --config FILE.py   or from a config given
    jseg convert FOLDER OUT.safetensors                    a Hugging Face model folder: config.json, model.safetensors
                                                           or pytorch_model.bin (whole or sharded), and
                                                           preprocessor_config.json; SegFormer, UPerNet, Mask2Former,
                                                           MaskFormer, BEiT, DPT, EoMT (DINOv2, DINOv3);
                                                           DINOv2 alone
    jseg convert --config FILE.py OUT.yaml                 a config alone

Files without a config are known by their keys. Backbones, without their classifier: ResNet and ResNeXt (torchvision,
timm, OpenMMLab, detectron2), MobileNetV2 and V3 (torchvision, timm), EfficientNet (torchvision, timm, mmpretrain), VGG
(torchvision, mmpretrain), GoogLeNet (torchvision), ViT, DeiT, DINOv2 and MAE, BEiT, Swin, ConvNeXt and HRNet (their
authors', timm; ConvNeXt of torchvision too), HRFormer (its authors', mmpose), VAN (its authors', mmpretrain), MiT,
MSCAN, PIDNet, DDRNet. Whole models: SegNeXt, NVIDIA's SegFormer, Meta's Mask2Former (.pkl), PIDNet, DDRNet and EoMT of
their authors. With --config a backbone's weights are fitted to that config's backbone: positions and tables of another
picture size, and DINOv2's filters of other patches, are resized. Every key is accounted for. `load_from: IN.pth` in a
config does the same when training starts.
"""

from __future__ import annotations

import pathlib

from jseg.convert.state import CHOICES
from jseg.errors import ConvertError

EXAMPLE = "jseg convert segnext_mscan-t_1x16_512x512_adamw_160k_ade20k.pth weights/segnext_tiny_ade20k.safetensors"


def add_arguments(parser) -> None:
    """Options of `jseg convert`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="IN [OUT.safetensors], or OUT.yaml with --config; "
                        "IN is a file or a Hugging Face model folder; OUT is beside IN by default")
    parser.add_argument("--config", dest="given_config", metavar="FILE",
                        help="an mmsegmentation or original JSeg config (.py), or a jseg config (.yaml, or a shipped "
                             "config's name)")
    parser.add_argument("--weights", choices=CHOICES, default="default",
                        help="which set of a file that holds a moving average and the weights as trained (default: "
                             "what its program would load)")
    parser.add_argument("--allow-nonfinite", action="store_true", help="convert weights that hold NaN or inf")
    parser.add_argument("--classes", metavar="DATASET",
                        help="take class names and colours from this dataset type, for example CityscapesDataset")


def run(args) -> int:
    """Convert, and print the account of every key."""
    import jseg.data.datasets  # noqa: F401  (registers the datasets, whose class names a file may need)
    from jseg.convert.checkpoint import convert_checkpoint, convert_config
    files = [pathlib.Path(name) for name in args.files]
    if len(files) == 1 and files[0].suffix in (".yaml", ".yml"):
        if args.given_config is None:
            raise ConvertError(f"{files[0]}: a config to write, but none to read; give --config FILE.py")
        notes = convert_config(args.given_config, files[0])
        print("\n".join([f"{args.given_config} -> {files[0]}", *(f"  note: {note}" for note in notes)]))
        return 0
    if len(files) > 2:
        raise ConvertError(f"{len(files)} files given; one checkpoint and one result are taken")
    out = files[1] if len(files) == 2 else _beside(files[0])
    done = convert_checkpoint(files[0], out, config=args.given_config, weights=args.weights, classes=args.classes,
                              allow_nonfinite=args.allow_nonfinite)
    print(done.text())
    return 0


def _beside(source: pathlib.Path) -> pathlib.Path:
    """Where the result goes if nobody says: beside the file, or beside the folder of a model of Hugging Face."""
    from jseg.convert.hf import find_folder
    found = find_folder(source)
    if found is None:
        return source.with_suffix(".safetensors")
    folder = found[0].resolve()
    return folder.with_name(f"{folder.name}.safetensors")

"""Write golden/releases.npz: what small networks of other homes compute, for `test_releases.py`.

    python tests/convert/make_releases.py SOURCES [NAME...]     under the Python of tests/parity/backbones.py, with its
                                                                folder; with names these alone, others stay as they are

Each network is built by its own library or its authors' file. The file holds the names and shapes of its weights (their
values follow from `release_cases.weight`), and a part of every map of one picture; and what SciPy and PyTorch make of
positions on another grid.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "parity")]
import backbones_authors as authors  # noqa: E402
import backbones_encoders as encoders  # noqa: E402
import backbones_torch as packages  # noqa: E402
import torch  # noqa: E402
from backbones_tools import PLACE, as_map, plain_norms, tapped  # noqa: E402
from release_cases import TABLE, picture, sample, weight  # noqa: E402
from torch.nn import functional as F  # noqa: E402


def resnet_d():
    from timm.models.resnet import BasicBlock, ResNet
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=3, stem_type="deep", stem_width=4, avg_down=True,
                   channels=(8, 16, 32, 64))
    return model, lambda x: tapped(model, [model.layer1, model.layer2, model.layer3, model.layer4],
                                           lambda m: m(x))


def mobilenet_v2():
    from torchvision.models import MobileNetV2
    model = MobileNetV2(num_classes=3, width_mult=0.1)
    return model, lambda x: tapped(model, [model.features[i] for i in (3, 6, 13, 17)], lambda m: m(x))


def vit_scaled():
    from timm.models.vision_transformer import VisionTransformer
    model = VisionTransformer(img_size=32, patch_size=8, num_classes=3, embed_dim=64, depth=4, num_heads=1, mlp_ratio=2,
                              init_values=0.1, no_embed_class=True)
    taps = [*model.blocks[:3], model.norm]
    return model, lambda x: [as_map(t, 1) for t in tapped(model, taps, lambda m: m(x))]


def beit_shared():
    return packages.timm_beit(img_size=32, patch_size=8, num_classes=3, embed_dim=16, depth=4, num_heads=2, mlp_ratio=2,
                             init_values=0.1, use_abs_pos_emb=False, use_shared_rel_pos_bias=True, global_pool="token")


def swin_authors():
    return authors.authors_swin(img_size=32, num_classes=3, embed_dim=8, depths=[2, 1, 1], num_heads=[1, 2, 2],
                                window_size=2, mlp_ratio=2.0, drop_path_rate=0.0, ape=True)


def swin_timm():
    from timm.models.swin_transformer import SwinTransformer
    model = SwinTransformer(img_size=32, num_classes=3, embed_dim=8, depths=(2, 1, 1), num_heads=(1, 2, 2),
                            window_size=2, mlp_ratio=2.0)
    return model, lambda x: plain_norms(tapped(model, [layer.blocks for layer in model.layers],
                                                                lambda m: m(x)))


def convnext_authors():
    return authors.authors_convnext(num_classes=3, depths=[1, 1, 2, 1], dims=[8, 16, 16, 32])


def hrnet_authors():
    return authors.authors_hrnet(4)


def pidnet():
    return authors.authors_pidnet(m=2, n=2, num_classes=5, planes=4, ppm_planes=4, head_planes=8)


def ddrnet_for_inference():
    return authors.authors_ddrnet(num_classes=5, planes=4, spp_planes=4, head_planes=8, augment=False)


def segformer():
    return authors.authors_segformer("small", 5, 12)


def mask2former():
    return authors.authors_mask2former("small", 4, (1, 2))


def van():
    return encoders.authors_van("VAN", num_classes=3, embed_dims=[8, 16, 16, 32], depths=[1, 1, 2, 1],
                                mlp_ratios=[2, 2, 2, 2])


def vgg_normed():
    return encoders.torchvision_vgg("vgg11_bn")


def googlenet():
    model, maps = encoders.torchvision_googlenet()
    model.aux1, model.aux2 = None, None
    return model, maps


def efficientnet():
    return encoders.timm_efficientnet("efficientnet_b0")


def hrformer():
    def stage(i, modules):
        return {"NUM_MODULES": modules, "NUM_BRANCHES": i, "BLOCK": "TRANSFORMER_BLOCK", "NUM_BLOCKS": [1] * i,
                "NUM_CHANNELS": [8, 12, 16, 24][:i], "NUM_HEADS": [1, 2, 2, 3][:i], "NUM_MLP_RATIOS": [2] * i,
                "NUM_RESOLUTIONS": [[8, 8]] * i, "NUM_WINDOW_SIZES": [3] * i,
                "ATTN_TYPES": [[["isa_local"]] * i] * modules, "FFN_TYPES": [[["conv_mlp"]] * i] * modules}

    first = {"NUM_MODULES": 1, "NUM_BRANCHES": 1, "BLOCK": "BOTTLENECK", "NUM_BLOCKS": [1], "NUM_CHANNELS": [4]}
    return encoders.authors_hrformer({"DROP_PATH_RATE": 0.0, "STAGE1": first, "STAGE2": stage(2, 1),
                                      "STAGE3": stage(3, 2), "STAGE4": stage(4, 1)})


CASES = (resnet_d, mobilenet_v2, vit_scaled, beit_shared, swin_authors, swin_timm, convnext_authors, hrnet_authors,
         pidnet, ddrnet_for_inference, segformer, mask2former, van, vgg_normed, googlenet, efficientnet, hrformer)


def main() -> None:
    """Run every network and write the file."""
    PLACE["sources"] = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    path, names = HERE / "golden" / "releases.npz", sys.argv[2:] or [build.__name__ for build in CASES]
    found: dict[str, np.ndarray] = {key: value for key, value in (np.load(path).items() if sys.argv[2:] else ())
                                    if key.partition(".")[0] not in names}
    for build in (build for build in CASES if build.__name__ in names):
        model, maps = build()
        state = model.state_dict()
        model.load_state_dict({key: value if not value.is_floating_point() or key.endswith("attn_mask") else
                               torch.from_numpy(weight(key, tuple(value.shape))) for key, value in state.items()})
        model.eval()
        with torch.no_grad():
            given = maps(torch.from_numpy(picture(build.__name__)))
        shapes = {key: [str(value.dtype).split(".")[1], *value.shape] for key, value in state.items()
                  if not key.endswith("attn_mask")}
        found[f"{build.__name__}.keys"] = np.array(json.dumps(shapes))
        for i, value in enumerate(given):
            found[f"{build.__name__}.{i}"] = sample(value.numpy())
        print(build.__name__, len(state), [tuple(value.shape) for value in given])
    table = weight("table", TABLE)
    found["geometric"] = scipy_table(table[:-3], 7, 11)
    found["bicubic"] = F.interpolate(torch.from_numpy(table[:-3]).T.reshape(1, -1, 7, 7), size=(11, 11), mode="bicubic",
                                     align_corners=False).numpy().reshape(-1, 121).T
    np.savez_compressed(path, **found)


def scipy_table(table: np.ndarray, old: int, new: int) -> np.ndarray:
    """BEiT's interpolation of a table of relative positions, with SciPy's spline."""
    from scipy.interpolate import RectBivariateSpline
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**(old // 2)) / (1 - q) > new // 2 else (q, high)
    places = np.cumsum([q**i for i in range(old // 2)])
    places = np.concatenate([-places[::-1], [0], places])
    wanted = np.clip(np.arange(-(new // 2), new // 2 + 1), places[0], places[-1])
    return np.stack([RectBivariateSpline(places, places, table[:, i].reshape(old, old).astype(np.float64))(
        wanted, wanted).reshape(-1) for i in range(table.shape[1])], 1)


if __name__ == "__main__":
    main()

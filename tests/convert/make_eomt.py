"""Write golden/eomt.npz: what small EoMT and DINOv2 networks compute, for `test_eomt.py`.

    PYTHON tests/convert/make_eomt.py      a Python with torch, timm and transformers 5.x

Values of weights follow from their names (`release_cases.weight`). Of EoMT on DINOv2 (learned
positions) and DINOv3 (rotary ones) the file holds config, processor, keys, the
label map of a picture that is cut into windows, its last reading, and of one training step in float64 every term of the
loss and three numbers of every gradient; of DINOv2 the last map, as transformers has it, and as timm has it after the
filters for 14 pixels were made ones for 16.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "parity")]
from hf_transformers import training_step  # noqa: E402
from release_cases import noise, sample, spread_weight, street_pixels, summary, weight  # noqa: E402

EOMT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 32,
        "patch_size": 8, "num_blocks": 2, "num_upscale_blocks": 1, "num_queries": 9, "num_register_tokens": 2,
        "train_num_points": 60, "id2label": {i: f"thing {i}" for i in range(7)}}
ROTARY = {**{key: value for key, value in EOMT.items() if key != "mlp_ratio"}, "intermediate_size": 32,
          "pos_embed_rescale": None}
DINO = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "mlp_ratio": 2, "image_size": 70,
        "patch_size": 14}
SIDE = 32


def fill(model: torch.nn.Module) -> dict[str, list[int]]:
    """Give a model its weights; their shapes by key."""
    state = model.state_dict()
    model.load_state_dict({key: value if "probs" in key or "empty" in key else
                           torch.from_numpy(spread_weight(key, tuple(value.shape))) for key, value in state.items()})
    return {key: list(value.shape) for key, value in state.items()}


def saved_and_filled(model: transformers.PreTrainedModel) -> tuple[transformers.PreTrainedModel, dict[str, list[int]]]:
    """A model of transformers with weights by the names that its files have, and their shapes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = pathlib.Path(folder) / "model.safetensors"
        state = load_file(path)
        save_file({key: weight(key, tuple(value.shape)) for key, value in state.items()}, path, {"format": "pt"})
        return type(model).from_pretrained(folder).eval(), {key: list(value.shape) for key, value in state.items()}


def eomt(form: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """One EoMT, on DINOv2 or DINOv3."""
    model.eval()
    shapes = fill(model)
    processor = transformers.EomtImageProcessorPil(do_split_image=True, size={"shortest_edge": SIDE,
                                                                              "longest_edge": None})
    picture = Image.fromarray(street_pixels())
    inputs = processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[picture.size[::-1]])[0]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        texts = {name: np.array((pathlib.Path(folder) / f"{name}.json").read_text())
                 for name in ("config", "preprocessor_config")}
    found = {"pixels": inputs["pixel_values"].numpy(), "label map": labels.numpy().astype(np.uint8),
             "classes": outputs.class_queries_logits.numpy(), "masks": outputs.masks_queries_logits.numpy(), **texts}
    model.attn_mask_probs.copy_(torch.tensor([0.5, 1.0]))
    step = training_step(model, inputs["pixel_values"], 7)
    found.update({key: summary(key, value) if key.startswith("gradient/") else value for key, value in step.items()})
    return {f"{form}/{key}": value for key, value in {"keys": np.array(json.dumps(shapes)), **found}.items()}


def dinov2() -> dict[str, np.ndarray]:
    """The same backbone, from two libraries."""
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
    found, pixels = {}, torch.from_numpy(noise(64))
    model, shapes = saved_and_filled(transformers.Dinov2Model(transformers.Dinov2Config(**DINO)))
    found["transformers.keys"] = np.array(json.dumps(shapes))
    words = {"embed_dim": 64, "depth": 2, "num_heads": 1, "mlp_ratio": 2, "init_values": 1e-5, "num_classes": 0,
             "reg_tokens": 3, "no_embed_class": True}
    old, new = VisionTransformer(img_size=70, patch_size=14, **words), VisionTransformer(img_size=64, **words).eval()
    found["timm.keys"] = np.array(json.dumps(fill(old)))
    new.load_state_dict(checkpoint_filter_fn(old.state_dict(), new))
    with torch.no_grad():
        tokens = {"transformers": model(pixel_values=pixels[..., :56, :56]).last_hidden_state[:, 1:],
                  "timm": new.forward_features(pixels)[:, 4:]}
    found.update({f"{name}.map": sample(x.transpose(1, 2).reshape(1, 64, 4, 4).numpy()) for name, x in tokens.items()})
    return {f"dinov2.{key}": value for key, value in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    forms = {"learned": transformers.EomtForUniversalSegmentation(transformers.EomtConfig(**EOMT)),
             "rotary": transformers.EomtDinov3ForUniversalSegmentation(transformers.EomtDinov3Config(**ROTARY))}
    found = {key: value for form, model in forms.items() for key, value in eomt(form, model).items()}
    np.savez_compressed(HERE / "golden" / "eomt.npz", **found, **dinov2())

"""The referee's side of `hf.py`: models of Hugging Face's transformers with random weights, saved and run.

    PYTHON tests/parity/hf_transformers.py FOLDER

FOLDER holds jobs.json. Each job's model is built from its own config classes, saved with `save_pretrained` under
FOLDER/<name>/model beside its image processor, and run on FOLDER/<name>/street.jpg: out.npz holds logits as the model
gives them and labels as `post_process_semantic_segmentation` gives them; step.npz, of jobs with `train`, the terms of
the loss and the gradients of one training step in float64. Nothing of jseg is imported.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from gradients import uniform
from PIL import Image


_QUERIES = {"class_predictor": 3.0, "mask_embedder.2.0.weight": 3.0, "queries_": 12.0, "attn.q_proj": 3.0,
            "mask_head.fc3.weight": 0.2, "query.weight": 5.0}


def street(path: pathlib.Path, size: list[int], seed: int) -> None:
    """A JPEG of smooth colours, edges and grain, (height, width) in pixels."""
    rng, (h, w) = np.random.default_rng(seed), size
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((w, h), Image.BICUBIC)
    picture = np.asarray(coarse, np.float32)
    for _ in range(12):
        top, left = rng.integers(0, h), rng.integers(0, w)
        part = picture[top:top + rng.integers(8, h), left:left + rng.integers(8, w)]
        part += rng.normal(0, 60, 3)
    picture += rng.normal(0, 8, picture.shape)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def config_of(job: dict) -> transformers.PretrainedConfig:
    """The config of a job; blocks with a `model_type` become configs of their own."""
    words = dict(job["config"])
    for key in ("backbone_config", "decoder_config"):
        if key in words:
            block = dict(words[key])
            words[key] = transformers.AutoConfig.for_model(block.pop("model_type"), **block)
    words["id2label"] = {i: name for i, name in enumerate(job["classes"])}
    words["label2id"] = {name: i for i, name in enumerate(job["classes"])}
    return getattr(transformers, job["model"]).config_class(**words)


def stir(model: torch.nn.Module, seed: int) -> None:
    """Random weights with a spread that every part shows in: also norms, statistics, tables and scales."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator) if value.is_floating_point() else None
        if noise is None or "empty_weight" in name or "mask_probs" in name:
            continue
        if name.endswith("running_var"):
            value.copy_(1 + 0.5 * noise.abs())
        elif value.dim() > 1 and "bias_table" not in name and "token" not in name and "position" not in name:
            value.copy_(noise * (2.0 / value[0].numel()) ** 0.5)
        elif name.endswith("weight") or "lambda" in name or "layer_scale" in name:
            value.copy_(1 + 0.2 * noise)
        else:
            value.copy_(0.2 * noise)
        # or all queries would be alike
        value.mul_(next((factor for part, factor in _QUERIES.items() if part in name), 1.0))


def balance(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Take each class's mean from the last layer's bias, or one class would win everywhere."""
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
        last = [value for name, value in model.named_parameters()
                if name in ("class_predictor.bias", "decode_head.classifier.bias", "head.head.4.bias")]
        last[0].sub_(outputs["logits"].mean((0, 2, 3)) if "logits" in outputs
                     else outputs["class_queries_logits"].mean((0, 1)))


def run(folder: pathlib.Path, job: dict) -> None:
    """Build, save, run."""
    model = getattr(transformers, job["model"])(config_of(job)).eval()
    stir(model, job["seed"])
    processor = getattr(transformers, job["processor"])(**job.get("processing", {}))
    street(folder / "street.jpg", job["size"], job["seed"])
    inputs = processor(images=Image.open(folder / "street.jpg"), return_tensors="pt")
    windows = {key: inputs[key] for key in ("patch_offsets",) if key in inputs}
    if "probs" in job:
        model.attn_mask_probs.copy_(torch.tensor(job["probs"]))
    balance(model, inputs["pixel_values"])
    model.save_pretrained(folder / "model", **({"max_shard_size": job["shard"]} if "shard" in job else {}))
    processor.save_pretrained(folder / "model")
    if job.get("format") == "bin":
        whole = folder / "model" / "model.safetensors"
        from safetensors.torch import load_file
        torch.save(load_file(whole), folder / "model" / "pytorch_model.bin")
        whole.unlink()
    with torch.no_grad():
        outputs = model(pixel_values=inputs["pixel_values"], **windows)
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[tuple(job["size"])])[0]
    names = ("logits",) if "logits" in outputs else ("class_queries_logits", "masks_queries_logits")
    np.savez(folder / "out.npz", pixels=inputs["pixel_values"].numpy(), labels=labels.numpy().astype(np.int64),
             **{name: outputs[name].numpy() for name in names}, **{key: torch.stack(list(value)).numpy()
                                                                   for key, value in windows.items()})
    if job.get("train"):
        if job["train"] is not True:
            model.attn_mask_probs.copy_(torch.tensor(job["train"]))
        np.savez(folder / "step.npz", **training_step(model, inputs["pixel_values"], len(job["classes"])))


def training_step(model: torch.nn.Module, pixels: torch.Tensor, classes: int) -> dict[str, np.ndarray]:
    """Labels, weighted terms of the loss by reading ("losses/<reading>/<name>") and gradients of a model that
    classifies masks, in float64, with the random numbers that jseg's side draws.
    """
    (count, _, height, width), rng = pixels.shape, np.random.default_rng(3)
    labels = np.kron(rng.integers(0, classes, (count, -(-height // 16), -(-width // 16))),
                     np.ones((16, 16), np.int64))[:, :height, :width]
    labels[rng.random(labels.shape) > 0.9] = 255
    shown = [torch.from_numpy(found[found != 255]) for found in map(np.unique, labels)]
    masks = [torch.from_numpy(picture == found.numpy()[:, None, None]).double()
             for picture, found in zip(labels, shown)]
    terms, losses_of, rand, to_float = [], model.get_loss_dict, torch.rand, torch.Tensor.float

    def noted(**words):
        terms.append(losses_of(**words))
        return terms[-1]

    torch.set_default_dtype(torch.float64)
    torch.rand = lambda *shape, **_: torch.from_numpy(uniform(*shape)).double()
    torch.Tensor.float = torch.Tensor.double
    try:
        model.double().train().get_loss_dict = noted
        model(pixel_values=pixels.double(), mask_labels=masks, class_labels=shown).loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.rand, torch.Tensor.float = rand, to_float
    losses = {f"losses/{i}/{name}": value.detach().numpy()
              for i, found in enumerate(terms) for name, value in found.items()}
    gradients = {f"gradient/{name}": value.grad.numpy().astype(np.float32)
                 for name, value in model.named_parameters() if value.grad is not None}
    return {"labels": labels.astype(np.int32), "probs": model.attn_mask_probs.numpy(), **losses, **gradients}


def main() -> None:
    """Run every job of a folder."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    root = pathlib.Path(sys.argv[1])
    (root / "referee.txt").write_text(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for job in json.loads((root / "jobs.json").read_text()):
        folder = root / job["name"]
        folder.mkdir(exist_ok=True)
        try:
            run(folder, job)
            print(f"referee: {job['name']} done", flush=True)
        except Exception as error:  # the row says so, the others go on
            (folder / "failed.txt").write_text(f"{type(error).__name__}: {error}")
            print(f"referee: {job['name']}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()

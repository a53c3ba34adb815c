"""jseg's side of one comparison of compare.py: convert the checkpoint, load it strictly, run the same, compare.

    python tests/parity/compare_jseg.py FOLDER         after compare_mmseg.py; writes FOLDER/result.json

The weights reach jseg through the converted file alone. Dropout and drop path are set to 0 in the converted config, and
the factorisation starts from the bases of segnext_cases.py, as on the other side.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import numpy as np
import segnext_cases as shared
from gradients import gradient_errors

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import jseg  # noqa: E402,F401  (prepares the process before Jittor is imported)


def error_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the reference's range; infinite where a value is not finite or the shapes differ."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - theirs).max() / max(np.ptp(theirs), 1e-30))


def short(values: np.ndarray) -> list[float]:
    """Two digits of each."""
    return [float(f"{value:.2g}") for value in values]


def distance(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    """Norm of the difference over all arrays."""
    return float(np.sqrt(sum(np.square(one[key].astype(np.float64) - two[key]).sum() for key in two)))


class Side:
    """The converted model and the reference's results.

    Args:
        folder: holds job.json, checkpoint.pth and reference.npz.
    """

    def __init__(self, folder: pathlib.Path):
        import jittor as jt
        import jseg.data.datasets  # noqa: F401
        from jseg.convert.checkpoint import convert_checkpoint
        from jseg.engine.checkpoint import load_weights
        from jseg.models import build_model
        from jseg.models.heads.ham_head import NMF2D
        self.job = json.loads((folder / "job.json").read_text())
        self.reference = np.load(folder / "reference.npz")
        self.facts = json.loads(str(self.reference["facts"]))
        self.conversion = convert_checkpoint(folder / "checkpoint.pth", folder / "converted.safetensors")
        self.state, meta = load_weights(self.conversion.out)
        block = meta["config"]["model"]
        block["backbone"]["drop_path_rate"] = block["decode_head"]["dropout_ratio"] = 0.0
        NMF2D.starting_bases = lambda this, batch: jt.array(
            shared.bases((batch * this.spatial, this.dimension, this.rank))).stop_grad()
        self.model = build_model(block)

    def group(self, name: str) -> dict[str, np.ndarray]:
        """Entries of the reference below `name/`."""
        return {key.partition("/")[2]: self.reference[key]
                for key in self.reference.files if key.startswith(name + "/")}

    def load(self) -> None:
        """The converted weights, strictly."""
        from jseg.engine.checkpoint import load_into
        load_into(self.model, self.state)

    def keys(self) -> dict:
        """Equal keys and parameter counts."""
        from jseg.layers import count_parameters
        count = count_parameters(self.model)
        return {"parameters": count, "keys equal": sorted(self.state) == sorted(self.facts["keys"])
                and count == self.facts["parameters"]}

    def training(self) -> dict:
        """One training-mode step."""
        import jittor as jt
        from jseg.layers import named_parameters
        self.load()
        self.model.train()
        values = self.model.loss(jt.array(self.reference["step_pictures/0"]), jt.array(self.reference["step_labels/0"]))
        parameters = named_parameters(self.model)
        gradients = dict(zip(parameters, [g.numpy() for g in jt.grad(values["loss"], list(parameters.values()))]))
        errors = gradient_errors(gradients, self.group("gradient"))
        worst = max(errors, key=errors.get)
        state, running = self.model.state_dict(), self.group("running")
        loss = float(self.reference["loss"])
        return {"loss": abs(values["decode.loss_ce"].item() - loss) / loss, "gradients": errors[worst],
                "worst gradient": worst, "gradients compared": len(errors),
                "running statistics": max(error_of(state[key].numpy(), value) for key, value in running.items())}

    def trajectory(self) -> dict:
        """A run of SGD with jseg's own optimizer."""
        import jittor as jt
        from jseg.engine.optim import build_optimizer
        from jseg.layers import named_parameters
        self.load()
        self.model.train()
        optimizer = build_optimizer(self.model, {"type": "SGD", "lr": self.job["lr"], "momentum": self.job["momentum"]})
        losses = []
        for step in range(self.job["steps"]):
            loss = self.model.loss(jt.array(self.reference[f"step_pictures/{step}"]),
                                   jt.array(self.reference[f"step_labels/{step}"]))["loss"]
            optimizer.accumulate(loss)
            optimizer.step(optimizer.lrs)
            losses.append(loss.item())
        start = {key: self.state[key].astype(np.float64) for key in named_parameters(self.model)}
        ends = {key: value.numpy() for key, value in named_parameters(self.model).items()}
        theirs, exact, expected = self.group("trained"), self.group("exact"), self.reference["exact_losses"]
        way, drift, torch_drift = distance(exact, start), losses - expected, self.reference["trained_losses"] - expected
        return {"trajectory losses": float(np.max(np.abs(drift) / expected)),
                "trajectory weights": distance(ends, exact) / way,
                "torch losses": float(np.max(np.abs(torch_drift) / expected)),
                "torch weights": distance(theirs, exact) / way, "loss differences": short(drift),
                "torch loss differences": short(torch_drift),
                "first and last loss": [float(expected[0]), float(expected[-1])]}

    def inference(self) -> dict:
        """Logits, whole, slide and augmented label maps."""
        import jittor as jt
        self.load()
        self.model.eval()
        pictures, metas = self.reference["view/0"], self.facts["metas"]
        with jt.no_grad():
            found = {"logits": error_of(self.model(jt.array(pictures)).numpy(), self.reference["logits"])}
        views = [(self.reference[f"view/{i}"], metas) for i, metas in enumerate(self.facts["view_metas"])]
        maps = {"whole": self.model.predict(pictures, metas), "TTA": self.model.predict_augmented(views)}
        self.model.test_cfg = self.facts["slide"]
        maps["slide"] = self.model.predict(pictures, metas)
        for mode, pair in maps.items():
            theirs = [self.reference[f"{mode}/{i}"].reshape(labels.shape) for i, labels in enumerate(pair)]
            found[mode] = float(np.mean(np.concatenate([(a == b).ravel() for a, b in zip(pair, theirs)])))
        found["classes seen"] = len(np.unique(np.concatenate([labels.ravel() for labels in maps["whole"]])))
        return found


def main(folder: pathlib.Path) -> None:
    """Write result.json."""
    import jittor as jt
    start = time.time()
    with jt.flag_scope(lazy_execution=0):
        side = Side(folder)
        result = {"versions": side.facts["versions"], "converted from": side.conversion.origin["family"],
                  "md_r": side.conversion.origin["md_r"], **side.keys(), **side.inference(), **side.training(),
                  **side.trajectory()}
    result["seconds"] = round(time.time() - start)
    (folder / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

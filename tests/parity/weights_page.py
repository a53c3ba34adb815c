"""Results of comparing released weights with the library that wrote them, and the page docs/parity_weights.md.

Rows are kept in weights.json by release ("transformers/segformer-b0"): `source` (the library), `model`, `keys` (of the
file), `unaccounted` (keys neither taken nor dropped with a reason), `logits` (largest difference over their range),
`labels` (share of pixels with the same class; null for backbones), `date`; where a training step was compared,
`gradients` (the worst by norm, of `gradients compared` parameters), `worst gradient`, `gradients of torch` (how far
PyTorch's own float32 strays), `gradients without partner`, `running` (statistics of norms), `losses` (largest relative
error of a term) and `terms` (how many); further values are kept and not shown.
Scripts that compare call `save`.
"""

from __future__ import annotations

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from jseg.text import fill_prose  # noqa: E402

__all__ = ["failures", "load", "save"]

RESULTS, PAGE = HERE / "weights.json", ROOT / "docs" / "parity_weights.md"
LOGITS, LABELS = 1e-4, 0.999
GRADIENTS, STRAY, RUNNING, LOSSES = 1e-3, 3.0, 1e-4, 1e-4  # as in zoo.py


def load() -> dict[str, dict]:
    """Kept rows by release."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def save(rows: dict[str, dict]) -> None:
    """Write the rows, a line for each, and the page."""
    lines = [f" {json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in sorted(rows.items())]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    PAGE.write_text(_page(rows), encoding="utf-8")


def failures(row: dict) -> list[str]:
    """What of a row is beyond its limit; empty where all agrees."""
    if "failed" in row:
        return [row["failed"]]
    found = [f"{row['unaccounted']} keys unaccounted for"] if row["unaccounted"] else []
    found += [f"logits {row['logits']:.2g} > {LOGITS:g}"] if not row["logits"] <= LOGITS else []
    limit = max(GRADIENTS, STRAY * row.get("gradients of torch", 0.0))
    if not row.get("gradients", 0.0) <= limit:
        found.append(f"gradients {row['gradients']:.2g} > {limit:.2g} ({row['worst gradient']})")
    if not row.get("running", 0.0) <= RUNNING:
        found.append(f"running statistics {row['running']:.2g} > {RUNNING:g}")
    if not row.get("losses", 0.0) <= LOSSES:
        found.append(f"losses {row['losses']:.2g} > {LOSSES:g}")
    if alone := row.get("gradients without partner"):
        found.append(f"no gradient there of {alone[:3]}")
    labels = row.get("labels")
    found += ["one class everywhere: the label maps tell nothing"] if row.get("classes seen", 2) < 2 else []
    return found + ([f"labels {labels:.3%} < {LABELS:.1%}"] if labels is not None and not labels >= LABELS else [])


def _page(rows: dict[str, dict]) -> str:
    good = sum(not failures(row) for row in rows.values())
    table = []
    for name, row in sorted(rows.items(), key=lambda item: (item[1].get("source", ""), item[0])):
        faults = failures(row)
        labels = row.get("labels")
        step = f"{row['gradients']:.1e} ({row['gradients compared']})" if "gradients" in row else ""
        losses = f"{row['losses']:.1e} ({row['terms']})" if "losses" in row else ""
        values = [""] * 6 if "failed" in row else [
            str(row["keys"]), str(row["unaccounted"]), f"{row['logits']:.1e}",
            "" if labels is None else f"{labels:.3%}", losses, step]
        cells = [row.get("source", ""), name.rpartition("/")[2], row.get("model", ""), *values,
                 "; ".join(faults) or "agrees", row.get("date", "")]
        table.append(f"| {' | '.join(cells)} |")
    return fill_prose("\n".join([
        "# Agreement with the libraries that released weights", "",
        "Written by `make parity-weights` (tests/parity/hf.py and its like); do not edit. The library builds the model "
        "with random weights and saves it as it saves releases; `jseg convert` reads the files, and both sides see the "
        f"same JPEG. Equal: every key accounted for, logits within {LOGITS:g} of their range, label maps at the "
        f"picture's own size on {LABELS:.1%} of the pixels; where a training step ran, every term of the "
        f"loss within {LOSSES:g} (in brackets how many) and gradients of every parameter, the worst by norm within "
        f"{GRADIENTS:g} of the library's in float64 (or {STRAY:g} times what its own float32 strays), with GELU for "
        "ReLU on both sides, and running statistics.", "",
        f"**{good} of {len(rows)}** agree.", "",
        "| library | release | model | keys | unaccounted | logits | labels | losses | gradients | result | day |",
        "|---|---|---|---|---|---|---|---|---|---|---|", *table, ""]))

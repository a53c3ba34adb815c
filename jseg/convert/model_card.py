"""What a card of a published model says besides its own facts: the licence of its data, the protocol of its figures,
and how fast jseg runs it where that was measured.

Licences of data sets are those that the scripts in `tools/convert_datasets/` state; speeds are rows of
`docs/performance.md` (tests compare both).
"""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

__all__ = ["DATA_LICENCES", "SPEEDS", "Speed", "card_lines", "data_licence", "markdown_card", "protocol_text"]

# the dataset as MMSegmentation calls it -> (script that prepares it, its licence)
DATA_LICENCES: dict[str, tuple[str, str]] = {
    "ADE20K": ("ade20k", "annotations BSD-3-Clause, pictures for research only"),
    "CHASE_DB1": ("chase_db1", "research; see the publisher's page"),
    "COCO-Stuff 10k": ("coco_stuff10k", "annotations CC BY 4.0, pictures under the terms of Flickr"),
    "COCO-Stuff 164k": ("coco_stuff164k", "annotations CC BY 4.0, pictures under the terms of Flickr"),
    "Cityscapes": ("cityscapes", "non-commercial research, by registration"),
    "DRIVE": ("drive", "research and education, by registration"),
    "HRF": ("hrf", "CC BY 4.0"),
    "LoveDA": ("loveda", "CC BY-NC-SA 4.0"),
    "NYU": ("nyu", "see the publisher's page"),
    "Pascal Context": ("pascal_context", "pictures under the terms of Flickr, annotations for research"),
    "Pascal Context 59": ("pascal_context", "pictures under the terms of Flickr, annotations for research"),
    "Pascal VOC 2012 + Aug": ("voc_aug", "pictures under the terms of Flickr, annotations for research"),
    "Potsdam": ("potsdam", "research, by registration"),
    "STARE": ("stare", "research; see the publisher's page"),
    "Vaihingen": ("vaihingen", "research, by registration"),
    "iSAID": ("isaid", "CC BY-NC-SA 4.0 for annotations; pictures for academic use only"),
}
_PROTOCOL = {"mIoU": "one scale, no flip",
             "mIoU(ms+flip)": "mean of six scales, 0.5 to 1.75, each with its mirror image",
             "mDice": "one scale, no flip", "Dice": "one scale, no flip", "RMSE": "depth in metres"}


class Speed(NamedTuple):
    """Inference of one picture: `row` of docs/performance.md, and milliseconds (median)."""

    row: str
    milliseconds: float


_MACHINE = "2 threads of an AMD EPYC, 2026-11-21; jseg bench, docs/performance.md"
# name of the model -> inference of 1 x 512 x 512
SPEEDS: dict[str, Speed] = {
    f"segnext_mscan-{letter}_1xb16-adamw-160k_ade20k-512x512": Speed(
        f"segnext_{size}_ade20k-512x512_160k, inference, 1 x 512x512, 2 threads", milliseconds)
    for letter, size, milliseconds in (("t", "tiny", 47.1), ("b", "base", 191.0), ("l", "large", 464.0))}


def data_licence(dataset: str) -> str:
    """The licence of a data set as MMSegmentation calls it."""
    return DATA_LICENCES[dataset][1] if dataset in DATA_LICENCES else "not known here; see the publisher's page"


def protocol_text(metrics: Mapping[str, float], dataset: str) -> str:
    """Under which rules the published figures were measured."""
    rules = [f"{key}: {_PROTOCOL[key]}" for key in metrics if key in _PROTOCOL]
    return f"validation pictures of {dataset} at the test pipeline's size; {'; '.join(rules)}"


def card_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, text) of every line of a card.

    Args:
        facts: what `jseg models NAME --json` prints.
    """
    height, width = facts["crop"]
    if facts["missing_types"]:
        here = f"not yet; jseg lacks {', '.join(facts['missing_types'])}"
    else:
        here = f"not yet; {facts['fault']}" if facts["fault"] else f"yes; jseg weights get {facts['name']}"
    lines = [("family", f"{facts['family']} ({', '.join(facts['architecture'])})"),
             ("dataset", f"{facts['dataset']} ({facts['dataset_type']})"),
             ("published", ", ".join(f"{key} {value:g}" for key, value in facts["metrics"].items())),
             ("protocol", facts["protocol"]),
             ("origin", f"MMSegmentation (OpenMMLab), {facts['config']}"), ("weights", facts["url"]),
             ("file", f"sha256 begins with {facts['hash_digits']}, by its name"),
             ("licence", f"weights {facts['licence']}; data: {facts['data_licence']}"), ("builds here", here)]
    if facts["parameters"]:
        lines += [("parameters", f"{facts['parameters']:,}"),
                  ("operations", f"{facts['operations'] / 1e9:.2f} G for one picture of {height}x{width}")]
    speed = facts["speed_ms"]
    lines.append(("speed", f"{speed:g} ms a picture of 512x512 ({_MACHINE})" if speed is not None
                  else "not measured here; jseg benchmark CONFIG measures it"))
    return lines


def markdown_card(facts: Mapping[str, Any]) -> str:
    """A card as a Markdown page."""
    rows = "\n".join(f"| {title} | {text.replace('|', '/')} |" for title, text in card_lines(facts))
    use = ("" if facts["missing_types"] or facts["fault"] else
           f"\n    jseg weights get {facts['name']}\n    jseg predict weights/{facts['name']}.safetensors "
           "picture.jpg\n")
    return f"# {facts['name']}\n\n| fact | |\n|---|---|\n{rows}\n{use}"

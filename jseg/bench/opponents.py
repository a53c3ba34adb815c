"""The other sides of `jseg bench`: what each is, how it starts, and why it cannot where it cannot.

    torch          MMSegmentation's model under PyTorch, twice: with default settings, and tuned
    compile        the same under torch.compile; at inference with frozen weights, all from picture to label map at once
    onnxruntime    jseg's own ONNX file of the model, for the size that is timed
    openvino       the same file in float32; openvino-bf16: with bfloat16 arithmetic
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from typing import Sequence

from jseg.bench.side import HERE, TUNED, jseg_command, torch_command
from jseg.errors import ConfigError
from jseg.registry import nearest

__all__ = ["BF16_LABELS", "OPPONENTS", "Rival", "not_installed", "opponent_names", "rivals"]

OPPONENTS = ("torch", "compile", "onnxruntime", "openvino", "openvino-bf16")
EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}  # package -> extra of jseg-jittor
BF16_LABELS = 0.05  # share of label maps' pixels that bfloat16 may change


@dataclasses.dataclass(frozen=True)
class Rival:
    """Another side.

    Args:
        name: as tables call it.
        command: how it starts.
        env: variables of its process.
        words: of its `open` request.
        file: it runs an ONNX file, and its results are label maps alone.
        modes: what it can do.
        absent: why it cannot start here, or "".
        limits: accepted differences that are not the usual ones, by kind.
    """

    name: str
    command: tuple[str, ...]
    env: dict = dataclasses.field(default_factory=dict)
    words: dict = dataclasses.field(default_factory=dict)
    file: bool = False
    modes: tuple[str, ...] = ("infer", "train")
    absent: str = ""
    limits: dict = dataclasses.field(default_factory=dict)


def not_installed(packages: Sequence[str]) -> str:
    """"" where all these packages are here, else what to install, in words."""
    missing = [EXTRAS[package] for package in packages if importlib.util.find_spec(package) is None]
    return f"not installed: pip install 'jseg-jittor[{','.join(dict.fromkeys(missing))}]'" if missing else ""


def opponent_names(text: str) -> list[str]:
    """The opponents of a list with commas, each once.

    Raises:
        ConfigError: an unknown one, or none.
    """
    names = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in OPPONENTS:
            raise ConfigError(f"--against {name}: not an opponent{nearest(name, OPPONENTS)}; accepted, with commas "
                              f"between: {', '.join(OPPONENTS)}")
    if not names:
        raise ConfigError(f"--against: names nobody; accepted, with commas between: {', '.join(OPPONENTS)}")
    return names


def rivals(names: Sequence[str] = (), *, torch: str | None = None, jittor: bool = False) -> list[Rival]:
    """The sides that jseg is compared with.

    Args:
        names: of `OPPONENTS`.
        torch: a Python that has PyTorch and MMSegmentation.
        jittor: also the plain layer-by-layer path.
    Raises:
        ConfigError: an opponent needs `torch`, and it is None.
    """
    found = []
    for name in names:
        if name in ("torch", "compile"):
            if torch is None:
                raise ConfigError(f"--against {name}: runs under a Python that has PyTorch and mmsegmentation 1.x; "
                                  "name it by --against-torch PYTHON")
            command = tuple(torch_command(torch))
        if name == "torch":
            found += [Rival("PyTorch", command), Rival("PyTorch, tuned", command, TUNED, {"channels_last": True})]
        elif name == "compile":
            found.append(Rival("torch.compile", command, TUNED, {"compile": True}))
        else:
            found.append(_of_a_file(*name.split("-")))
    if jittor:
        found.append(Rival("plain Jittor", tuple(jseg_command()), {"JSEG_IMPL": "jittor"}))
    return found


def _of_a_file(kind: str, precision: str = "float32") -> Rival:
    """A runtime of ONNX files, in this Python."""
    title = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[kind]
    narrow = precision != "float32"
    return Rival(f"{title} {precision}" if narrow else title, (sys.executable, str(HERE / "runtime_side.py"), kind),
                 words={"precision": precision}, file=True, modes=("infer",),
                 absent=not_installed([kind, "onnx"]), limits={"label_maps": BF16_LABELS} if narrow else {})

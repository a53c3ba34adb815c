"""Whole models of Hugging Face's transformers become jseg weights files.

    folder (config.json, model.safetensors or pytorch_model.bin, sharded or not, preprocessor_config.json)
    -> facts (a checked reader of config.json) -> models/<family>.py (jseg's model block and a table of keys)
    -> keys (every key of the file renamed, joined or dropped with its reason) -> processor (the image processor as a
    test pipeline) -> the strict account and the writer of `jseg.convert.checkpoint`

Layouts are those of transformers 4.x, which 5.x writes and reads too. Families are found by themselves: adding one is
adding a file to `models/` with ARCHITECTURES, PROCESSOR and `plan(facts)`. Backbones alone (`folder.BACKBONES`) are
told by their keys, as those of other homes (`jseg.convert.guess`).
"""

from jseg.convert.hf.convert import convert_folder
from jseg.convert.hf.folder import backbone_file, find_folder

__all__ = ["backbone_file", "convert_folder", "find_folder"]

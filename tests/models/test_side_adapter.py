"""SAN's own parts: CLIP's tokens, its last blocks with queries beside the pictures' tokens, and the vectors of the
classes, which a conversion computes.
"""

import copy
import pickle

import jittor as jt
import numpy as np
import pytest

from jseg import ops
from jseg.layers.resize import resize_by_factor
from jseg.models import build_model, derived_parts, remap_keys
from jseg.models.heads.side_adapter_clip_head import MaskRecognition
from jseg.models.text_encoders.clip_text_encoder import TEMPLATES, CLIPTextEncoder, unit
from jseg.models.text_encoders.clip_tokenizer import tokenize

pytestmark = pytest.mark.usefixtures("few_kernels")


def test_tokens_are_those_of_clip():
    """Expected: OpenAI's own tokenizer, as mmsegmentation 1.2.2 has it."""
    expected = {"a photo of a cat.": [320, 1125, 539, 320, 2368, 269], "hello world!": [3306, 1002, 256],
                "Traffic  Light": [3399, 1395], "There's 42": [997, 568, 275, 273]}
    found = tokenize(list(expected))
    assert found.dtype == np.int32 and found.shape == (4, 8)
    for row, inner in zip(found, expected.values()):
        assert row.tolist() == [49406, *inner, 49407, *[0] * (6 - len(inner))]
    assert tokenize(["a " * 100], 12).tolist() == [[49406, *[320] * 10, 49407]]
    assert len(TEMPLATES["vild"]) == len(set(TEMPLATES["vild"])) == 14


def test_queries_beside_the_picture_are_one_masked_attention(rng):
    """Upstream runs both at once, -100 in the mask wherever one may not look."""
    jt.set_global_seed(0)
    part = MaskRecognition(sos_token_num=4, num_layers=2, embed_dims=8, num_heads=2, mlp_ratio=2, out_dims=6)
    tokens = jt.array(rng.standard_normal((2, 1 + 9, 8)).astype(np.float32))
    scores = rng.standard_normal((2, 2, 4, 9)).astype(np.float32)
    added = np.zeros((2, 2, 14, 14), np.float32)
    added[..., :4] = -100
    added[..., np.arange(4), np.arange(4)] = 0
    added[..., :4, 4] = -100
    added[..., :4, 5:] = scores
    x = jt.concat([tokens[:, :1].broadcast((2, 4, 8)), tokens], 1)
    for layer in part.layers:
        x = layer.close(x, ops.attention(layer.project(x), bias=jt.array(added)))
    want = unit(part.proj(part.ln_post(x[:, :4])))
    np.testing.assert_allclose(part(tokens, [jt.array(scores)]).numpy(), want.numpy(), atol=1e-5)


def test_a_resize_by_a_factor_keeps_its_step():
    """0.7 of 9 pixels are 6, 1 / 0.7 apart as PyTorch has them, and not 9 / 6."""
    line = np.arange(9, dtype=np.float32).reshape(1, 1, 1, 9).repeat(2, 2)
    got = resize_by_factor(jt.array(line), 0.7).numpy()
    assert got.shape == (1, 1, 1, 6)
    np.testing.assert_allclose(got[0, 0, 0], (np.arange(6) + 0.5) / 0.7 - 0.5, atol=1e-5)


def test_the_vectors_of_the_classes_are_means_of_sentences():
    jt.set_global_seed(1)
    encoder = CLIPTextEncoder(**{**{key: v for key, v in CLIPTextEncoder.TINY.items() if key != "type"},
                                 "templates": ["a {}.", "the {} in a scene"]})
    encoder.derive()
    found = encoder.class_embeds.numpy()
    alone = [encoder._encode([text.format("tree")])[0] for text in encoder.templates]  # no longer name beside it
    mean = np.mean(alone, 0)
    np.testing.assert_allclose(found[2], mean / np.linalg.norm(mean), atol=1e-5)
    rows = encoder().numpy()
    assert rows.shape == (6, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1 / 0.07, rtol=1e-4)


def test_a_conversion_computes_them(tmp_path):
    """A file with upstream's names and without them, a dataset's name in the place of its classes, and class weights
    of another dataset.
    """
    import jseg.data.datasets  # noqa: F401
    from jseg.convert.checkpoint import convert_checkpoint
    from jseg.engine.checkpoint import load_into, load_weights
    from test_contract import SPECIMENS
    block = copy.deepcopy(SPECIMENS["SideAdapterCLIPHead"])
    block["decode_head"]["num_classes"] = 20
    text = {key: value for key, value in block["text_encoder"].items() if key != "vocabulary"}
    names = jseg.data.datasets.PascalVOCDataset.METAINFO["classes"][1:]
    model = build_model({**block, "text_encoder": {**text, "vocabulary": list(names)}})
    model.derive()
    state = model.state_dict("numpy")
    assert list(derived_parts(block)) == ["text_encoder."]
    foreign = {key.replace("backbone.", "image_encoder."): np.array(value) for key, value in state.items()
               if key != "text_encoder.class_embeds"}
    block["image_encoder"] = block.pop("backbone")
    block["decode_head"]["loss_decode"] = [
        {"type": "CrossEntropyLoss", "loss_name": "loss_cls_ce", "loss_weight": 2.0,
         "class_weight": [1.0] * 171 + [0.1]},
        {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_name": "loss_mask_ce", "loss_weight": 5.0},
        {"type": "DiceLoss", "naive_dice": True, "eps": 1, "loss_name": "loss_mask_dice", "loss_weight": 5.0}]
    settings = {"model": {**block, "text_encoder": {**text, "dataset_name": "voc12aug", "cache_feature": True},
                          "data_preprocessor": {"type": "SegDataPreProcessor", "mean": [0, 0, 0], "std": [1, 1, 1]}}}
    with open(tmp_path / "san.pkl", "wb") as file:
        pickle.dump({"meta": {"config": settings}, "state_dict": foreign}, file)
    done = convert_checkpoint(tmp_path / "san.pkl", tmp_path / "san.safetensors")
    found, meta = load_weights(done.out)
    assert meta["config"]["model"]["text_encoder"]["vocabulary"] == list(names)
    assert meta["config"]["model"]["decode_head"]["loss_decode"][0]["class_weight"] == [1.0] * 20 + [0.1]
    assert any("172 values for 20 classes" in note for note in done.notes)
    assert remap_keys(dict.fromkeys(foreign), meta["config"]).keys() == state.keys() - {"text_encoder.class_embeds"}
    np.testing.assert_allclose(found["text_encoder.class_embeds"], state["text_encoder.class_embeds"], atol=1e-6)
    load_into(build_model(meta["config"]["model"]), found)

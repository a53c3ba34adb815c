"""The index of published models: made from a wheel, whole, searchable, and asked before a download."""

import importlib.util
import json
import pathlib
import re
import zipfile
from collections import Counter

import pytest

from jseg.cli import main
from jseg.cli.models import card, gather_facts
from jseg.convert import weights_index
from jseg.convert.model_index import INDEX, find_model, index_text, read_models, read_weights
from jseg.convert.model_index_search import search_models
from jseg.convert.weights_index import read_index
from jseg.errors import ConvertError
from jseg.registry import DATASETS, MODELS

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOST = "https://download.openmmlab.com/mmsegmentation/v0.5"
PSP = """_base_ = '../_base_/base.py'
model = dict(backbone=dict(type='ResNetV1c', depth={depth}, init_cfg=dict(type='Pretrained', checkpoint='x')))
train_dataloader = dict(dataset=dict(type='{data}Dataset', data_root='data/{data}/'))
"""
BASE = """model = dict(
    type='EncoderDecoder', pretrained='open-mmlab://x', data_preprocessor=dict(type='SegDataPreProcessor'),
    decode_head=dict(type='mmseg.PSPHead', num_classes=19, loss_decode=dict(type='CrossEntropyLoss')), train_cfg=dict())
"""
CITY, ADE = "4xb2-40k_city-512x1024", "4xb4-80k_ade-640x640"
# (name in the metafile, backbone, dataset, stem of the weights file, host)
ROWS = [
    (f"psp_r50_{CITY}", "R-50", "Cityscapes", "psp_r50_512x1024_40k_city_20200101_000000-00000001", HOST),
    (f"psp_r50_{CITY}", "R-101", "Cityscapes", "psp_r101_512x1024_40k_city_20200101_000000-00000002", HOST),  # shared
    # a dead path, a heading as dataset
    (f"ppsp_r18_{CITY}", "R-18", "# ResNet", "psp_r18_512x1024_40k_city_20200101_000000-00000003", HOST),
    (f"psp_r50_{ADE}", "R-101", "ADE20K", "psp_r101_4x4_640x640_80k_ade-00000004",  # wrong backbone and host
     HOST.replace("openmmlab", "oz1penmmlab")),
    (f"psp_r18_{ADE}", "R-18", "ADE20K", "psp_r18_20230906-00000005", HOST)]  # right as it is
CONFIGS = {f"psp_r{depth}_{rest}": (depth, data)
           for depth in (18, 50, 101) for rest, data in ((CITY, "Cityscapes"), (ADE, "ADE20K"))}
CONFIGS["psp_r18_voc-512x512"] = (18, "VOC")  # nearer to the last file's short name, but of other data
CONFIGS["psp_r101_4xb2-80k_ade-640x640"] = (101, "ADE20K")  # the file says 4x4


@pytest.fixture(scope="module")
def maker():
    """tools/make_model_index.py as a module."""
    spec = importlib.util.spec_from_file_location("make_model_index", ROOT / "tools" / "make_model_index.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wheel(path: pathlib.Path, rows=ROWS, reverse=False, **replaced: str) -> pathlib.Path:
    """A wheel of eight configs and the given rows; `replaced` replaces the text of a file by its stem."""
    models = [{"Name": name, "In Collection": "PSPNet", "Config": f"configs/psp/{name}.py",
               "Metadata": {"Architecture": [backbone, "PSPNet"]},
               "Results": {"Dataset": dataset, "Metrics": {"mIoU": 70 + i}}, "Weights": f"{host}/psp/{stem}.pth"}
              for i, (name, backbone, dataset, stem, host) in enumerate(rows)]
    files = {"model-index.yml": "Import: [configs/psp/metafile.yaml]", "configs/_base_/base.py": BASE,
             "configs/psp/metafile.yaml": json.dumps({"Models": models[::-1] if reverse else models}),
             **{f"configs/psp/{name}.py": PSP.format(depth=d, data=data) for name, (d, data) in CONFIGS.items()}}
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("mmsegmentation-9.9.dist-info/METADATA", "")
        for name, text in sorted(files.items(), reverse=reverse):
            wheel.writestr(f"mmseg/.mim/{name}", replaced.get(pathlib.PurePosixPath(name).stem, text))
    return path


@pytest.fixture(scope="module")
def models():
    return read_models()


def test_the_script_makes_the_index_and_repairs_it(maker, tmp_path, capsys):
    wheel, out = write_wheel(tmp_path / "a.whl"), tmp_path / "index.json"
    assert maker.main([str(wheel), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count(" -> ") == 5
    assert f"psp_r101_{ADE}: host download.oz1penmmlab.com -> download.openmmlab.com" in said
    made = read_models(out)
    found = {name: (m.hash_digits, m.dataset, m.dataset_type, m.crop, m.metrics["mIoU"]) for name, m in made.items()}
    assert found == {
        f"psp_r101_{CITY}": ("00000002", "Cityscapes", "CityscapesDataset", (512, 1024), 71),
        f"psp_r101_{ADE}": ("00000004", "ADE20K", "ADE20KDataset", (640, 640), 73),
        f"psp_r18_{ADE}": ("00000005", "ADE20K", "ADE20KDataset", (640, 640), 74),
        f"psp_r18_{CITY}": ("00000003", "Cityscapes", "CityscapesDataset", (512, 1024), 72),
        f"psp_r50_{CITY}": ("00000001", "Cityscapes", "CityscapesDataset", (512, 1024), 70)}
    r18 = made[f"psp_r18_{CITY}"]
    assert r18.url == f"{HOST}/psp/{ROWS[2][3]}.pth" and r18.config == f"configs/psp/psp_r18_{CITY}.py"
    assert r18.block == {
        "type": "EncoderDecoder", "data_preprocessor": {"type": "SegDataPreProcessor"}, "train_cfg": {},
        "decode_head": {"type": "PSPHead", "num_classes": 19, "loss_decode": {"type": "CrossEntropyLoss"}},
        "backbone": {"type": "ResNetV1c", "depth": 18}}
    assert json.loads(out.read_text())["about"] == {
        "source": "mmsegmentation 9.9", "licence": "Apache-2.0", "address": f"{HOST}/psp/", "configs": 8,
        "made_by": "tools/make_model_index.py"}
    other = write_wheel(tmp_path / "b.whl", reverse=True)
    assert maker.main([str(other), "--out", str(out), "--check"]) == 0  # the order inside the wheel does not count
    out.write_text(out.read_text().replace("70", "71", 1))
    assert maker.main([str(wheel), "--out", str(out), "--check"]) == 2
    assert "is not what this script makes" in capsys.readouterr().err


@pytest.mark.parametrize("rows, replaced, message", [
    ([(*ROWS[0][:4], "https://elsewhere.org/x"), *ROWS[1:3]], {}, "its weights are at elsewhere.org, all others at d"),
    ([("psp_x", "R-50", "ADE20K", "unknown-00000001", HOST)], {}, "psp_x: of 8 configs without a model in configs/psp"),
    ([ROWS[2]], {}, "'# ResNet' names no dataset, nor does any other model of CityscapesDataset"),
    (ROWS, {"model-index": "Import: []"}, "its metafiles list no model"),
    (ROWS, {"metafile": '{"Models": [{"Name": "x"}]}'}, "configs/psp/metafile.yaml: Models.0: KeyError 'Results'"),
    (ROWS, {"base": "model = open('x')"}, r"^configs/_base_/base\.py:1: "),
    (ROWS, {"base": "x = 1", ROWS[0][0]: "y = 1"}, f"^configs/psp/psp_r50_{CITY}.py: no model in it")])
def test_what_the_script_refuses(maker, tmp_path, capsys, rows, replaced, message):
    out = tmp_path / "index.json"
    assert maker.main([str(write_wheel(tmp_path / "a.whl", rows, **replaced)), "--out", str(out)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not out.exists()


def test_a_file_that_is_no_wheel(maker, tmp_path, capsys):
    (tmp_path / "no.whl").write_text("no zip")
    assert maker.main([str(tmp_path / "no.whl")]) == 2 and "cannot be read as a wheel" in capsys.readouterr().err


def test_the_shipped_index_is_whole(models):
    """Facts about mmsegmentation 1.2.2 that were counted in its wheel by other means than the script."""
    import jseg.data.datasets  # noqa: F401  (registers the datasets)
    text = INDEX.read_text(encoding="utf-8")
    content = json.loads(text)
    assert index_text(content) == text and len(text) < 600_000
    assert content["about"]["source"] == "mmsegmentation 1.2.2" and content["about"]["configs"] == 681
    for fact in ("config", "url", "file"):
        assert len({getattr(model, fact) for model in models.values()}) == len(models) == 626, fact
    assert sum("mIoU" in m.metrics for m in models.values()) == 600
    assert sum("mIoU(ms+flip)" in m.metrics for m in models.values()) == 551
    assert Counter(m.dataset for m in models.values()) == {
        "Cityscapes": 281, "ADE20K": 176, "Pascal VOC 2012 + Aug": 60, "COCO-Stuff 164k": 20, "Pascal Context": 10,
        "Pascal Context 59": 10, "LoveDA": 9, "Potsdam": 9, "Vaihingen": 9, "COCO-Stuff 10k": 8, "iSAID": 7, "DRIVE": 6,
        "STARE": 6, "CHASE_DB1": 6, "HRF": 6, "NYU": 2, "Mapillary Vistas v1.2": 1}
    for model in models.values():
        assert model.dataset_type in DATASETS and model.url.startswith(f"{HOST}/"), model.name
        assert len(model.hash_digits) == 8 and model.metrics, model.name
        assert min(*model.crop, *model.metrics.values()) > 0, model.name
        assert model.block["type"] and not {"init_cfg", "pretrained"} & set(model.block), model.name


@pytest.mark.parametrize("name, digits", [
    ("deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024", "cf9ce186"),  # dead paths
    ("emanet_r50-d8_4xb2-80k_cityscapes-512x1024", "c43fcef1"),
    ("fpn_poolformer_s36_8x4_512x512_40k_ade20k", "b47e607d"),
    ("pspnet_r101-d8_4xb2-80k_cityscapes-769x769", "dba412fa"),  # host
    ("bisenetv1_r101-d32_4xb4-160k_coco-stuff164k-512x512", "c6b32c3b"),  # one config for two files
    ("bisenetv1_r50-d32-in1k-pre_4xb4-160k_coco-stuff164k-512x512", "66747911"),
    ("deeplabv3plus_r101-d8_4xb4-80k_ade20k-512x512", "d5730af7"),
    ("deeplabv3plus_r101-d8_4xb4-160k_ade20k-512x512", "38ed86bb"),
    ("fastfcn_r50-d32_jpu_aspp_4xb4-80k_cityscapes-512x1024", "72220849"),
    ("fastfcn_r50-d32_jpu_psp_4xb4-80k_cityscapes-512x1024", "77e87b0a"),
    ("fastfcn_r50-d32_jpu_enc_4xb4-80k_cityscapes-512x1024", "e1eb6dbb"),
    ("ocrnet_hr18s_4xb4-160k_ade20k-512x512", "8e913058"), ("ocrnet_hr18_4xb4-160k_ade20k-512x512", "d8fcd9d1"),
    ("pspnet_r50-d32_4xb2-80k_cityscapes-512x1024", "9092b254"),
    ("twins_svt-l_uperhead_8xb2-160k_ade20k-512x512", "3e2cae61"),
    ("deeplabv3plus_r101-d8_4xb4-40k_pascal-context-480x480", "d3c8a29e"),  # said R-50
    ("deeplabv3plus_r101-d8_4xb4-80k_pascal-context-480x480", "145d3ee8")])
def test_repaired_rows(models, name, digits):
    """The weights file names the config that it was trained with."""
    assert models[name].hash_digits == digits


@pytest.mark.parametrize("like, data, count, first", [
    ("segformer-b0", "ade20k", 1, "segformer_mit-b0_8xb2-160k_ade20k-512x512"),
    ("SegFormer B0", "ADE", 1, "segformer_mit-b0_8xb2-160k_ade20k-512x512"),
    ("segformerb0 cityscapes", "", 1, "segformer_mit-b0_8xb1-160k_cityscapes-1024x1024"),
    ("resnet50 deeplabv3", "voc", 2, "deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512"),
    ("DeepLabV3+ r50", "", 13, "deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024"),
    ("bisenet v2", "", 4, "bisenetv2_fcn_4xb8-160k_cityscapes-1024x1024"),
    ("ocrnet hrnet-w48", "ade", 2, "ocrnet_hr48_4xb4-160k_ade20k-512x512"),
    ("pspnet", "context59", 2, "pspnet_r101-d8_4xb4-80k_pascal-context-59-480x480"),
    ("pspnet_r50-d8_512x1024_40k_cityscapes", "", 1, "pspnet_r50-d8_4xb2-40k_cityscapes-512x1024"),  # its 0.x name
    ("maskformer swin-t", "", 1, "maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512"),
    ("vpd", "", 2, "vpd_sd_4xb8-25k_nyu-480x480")])
def test_search_forgives(models, like, data, count, first):
    found = search_models(models, like.split(), data.split())
    assert (len(found), found[0].name) == (count, first)
    published = [model.metrics.get("mIoU", 0) for model in found]
    assert published == sorted(published, reverse=True)


@pytest.mark.parametrize("like, data, message", [
    ("segfromer", "", "'segfromer' is in none of the 626 models; did you mean 'segformer'"),
    ("segformer", "voc", "'voc' is in none of the 13 models; known datasets here: ADE20K, Cityscapes"),
    ("setr vit-b", "", "no model has all; leave one out"), ("...", "", "no letter or digit in it")])
def test_search_says_what_is_not_there(models, like, data, message):
    with pytest.raises(ConvertError, match=message):
        search_models(models, like.split(), data.split())


def test_names_mean_one_thing(models):
    """The old names stay, MMSegmentation's are added, and where a file has two names both say the same of it."""
    ours, known = read_index(), read_weights()
    assert set(known) == set(ours) | set(models) and len(known) == len(ours) + 626
    assert all(known[name] == entry for name, entry in ours.items())
    assert find_model("segnext_base_ade20k_mmseg", models).name == "segnext_mscan-b_1xb16-adamw-160k_ade20k-512x512"
    assert find_model("segnext_base_ade20k_authors", models) is None and find_model("x", models) is None
    by_url = {model.url: model.weights() for model in models.values()}
    twins = [(entry, by_url[entry.url]) for entry in ours.values() if entry.url in by_url]
    assert len(twins) == 4
    for entry, twin in twins:
        for field in ("file", "sha256", "miou", "source", "licence"):
            assert getattr(twin, field) == getattr(entry, field), (entry.name, field)


def test_what_builds_grows_with_the_registry(models, monkeypatch):
    """The registry is asked: SegNeXt builds; SegFormer does once its two classes are entered."""
    segnext = {m.name for m in search_models(models, ["segnext"])}
    assert len(segnext) == 4 and not any(models[name].missing_types() for name in segnext)
    pspnet = models["pspnet_r50-d8_4xb2-40k_cityscapes-512x1024"]
    monkeypatch.setattr(MODELS, "_entries", {"EncoderDecoder": MODELS.get("EncoderDecoder")})
    assert pspnet.missing_types() == ["ResNetV1c", "PSPHead", "FCNHead"]  # the auxiliary head, too
    for name in ("ResNetV1c", "FCNHead"):
        MODELS.register(name)(object)
    assert pspnet.missing_types() == ["PSPHead"]
    mask = models["mask2former_r50_8xb2-160k_ade20k-512x512"]
    assert mask.missing_types() == ["ResNet", "Mask2FormerHead"]  # what its head builds inside is the head's own
    assert "CrossEntropyLoss" not in models["ocrnet_hr18_4xb4-160k_ade20k-512x512"].missing_types()


def test_the_card_counts_what_builds(models):
    text = card(gather_facts(models["segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512"], count=True))
    for part in ("SegNeXt (MSCAN-T, SegNeXt)", "mIoU 41.5, mIoU(ms+flip) 42.59", "05bd8466.pth", "4,263,414",
                 "6.61 G for one picture of 512x512", "yes; jseg weights get segnext_mscan-t_1xb16"):
        assert part in text
    model = models["vpd_sd_4xb8-25k_nyu-512x512"]
    lacking = card({**gather_facts(model, count=False), "missing_types": ["VPD"]})
    assert "RMSE 0.258" in lacking and "not yet; jseg lacks VPD" in lacking and model.url in lacking


def test_the_command(capsys):
    assert main(["models", "--like", "segnext", "--data", "ade20k"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        "segnext_mscan-l_1xb16-adamw-160k_ade20k-512x512", "ADE20K", "50.99/52.1", "48,926,550", "66.3", "yes"]
    assert lines[-1].startswith("4 of 626 models, 4 of them build here.")
    assert main(["models", "--data", "nyu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["metrics"] for row in facts] == [{"RMSE": 0.253}, {"RMSE": 0.258}]
    assert facts[0]["url"].endswith("66144bc4.pth")
    assert facts[0]["config"] == "configs/vpd/vpd_sd_4xb8-25k_nyu-480x480.py"
    assert main(["models", "--long"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 626 + 2 and "configs/" in lines[1] and lines[1].endswith(".pth")
    assert main(["models", "segformer-b0"]) == 2
    assert "its words fit segformer_mit-b0_8xb1-160k_cityscapes" in capsys.readouterr().err
    assert main(["models", "x", "--like", "y"]) == 2 and "a name stands alone" in capsys.readouterr().err


def test_a_download_is_refused_before_it_begins(models, monkeypatch, tmp_path, capsys):
    """Types that jseg lacks, or options: one line with the address. All else is fetched."""

    def fetch(entry, folder, **options):
        raise ConvertError(f"fetching {entry.url}")

    monkeypatch.setattr(weights_index, "fetch", fetch)
    words = ["--dir", str(tmp_path)]
    segnext = "segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512"
    for name in (segnext, "segnext_tiny_ade20k_mmseg", "segnext_tiny_ade20k_authors", "mscan_tiny_imagenet_jseg"):
        assert main(["weights", "get", name, *words]) == 2 and capsys.readouterr().err.startswith("fetching http")
    monkeypatch.setattr(MODELS, "_entries", {"EncoderDecoder": MODELS.get("EncoderDecoder")})
    model = models["segformer_mit-b0_8xb2-160k_ade20k-512x512"]
    assert main(["weights", "get", model.name, *words]) == 2
    assert capsys.readouterr().err == (
        f"{model.name}: jseg has no MixVisionTransformer, SegformerHead yet, so its weights could not be used; "
        f"nothing was fetched. By hand: {model.url}\n")
    for name in ("MixVisionTransformer", "SegformerHead"):  # known, but wanting what the config does not give
        MODELS.register(name)(type(name, (), {"__init__": lambda self, window: None}))
    assert main(["weights", "get", model.name, *words]) == 2
    said = capsys.readouterr().err
    assert "jseg cannot build it yet (model.backbone: MixVisionTransformer needs 'window')" in said
    assert said.count("\n") == 1 and model.url in said and not list(tmp_path.iterdir())

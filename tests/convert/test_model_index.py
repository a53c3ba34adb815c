"""The index of published models: made from a wheel, whole, searchable, and asked before a download."""

import collections
import importlib.util
import json
import pathlib
import zipfile

import pytest

from jseg.cli import main
from jseg.cli.models import card, gather_facts
from jseg.convert import weights_index
from jseg.convert.model_index import INDEX, find_model, index_text, read_models, read_weights
from jseg.convert.model_index_search import search_models
from jseg.convert.weights_index import read_index
from jseg.errors import ConvertError
from jseg.registry import MODELS

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOST = "https://download.openmmlab.com/mmsegmentation/v0.5"
PSP = """_base_ = '../_base_/base.py'
model = dict(backbone=dict(type='ResNetV1c', depth={depth}, init_cfg=dict(type='Pretrained', checkpoint='x.pth')))
train_dataloader = dict(dataset=dict(type='{data}Dataset', data_root='data/{data}/'))
"""
BASE = """model = dict(type='EncoderDecoder', pretrained='open-mmlab://x', data_preprocessor=dict(type='SegDataPreProcessor'),
             decode_head=dict(type='mmseg.PSPHead', num_classes=19, loss_decode=dict(type='CrossEntropyLoss')), train_cfg=dict())
"""
# (name in the metafile, words of its architecture, dataset, stem of the weights file, host)
ROWS = [("psp_r50_4xb2-40k_city-512x1024", "R-50", "Cityscapes", "psp_r50_512x1024_40k_city_20200101_000000-00000001", HOST),
        ("psp_r50_4xb2-40k_city-512x1024", "R-101", "Cityscapes", "psp_r101_512x1024_40k_city_20200101_000000-00000002", HOST),  # shared config
        ("ppsp_r18_4xb2-40k_city-512x1024", "R-18", "# ResNet", "psp_r18_512x1024_40k_city_20200101_000000-00000003", HOST),  # dead path, heading
        ("psp_r50_4xb4-80k_ade-640x640", "R-101", "ADE20K", "psp_r101_4x4_640x640_80k_ade-00000004",  # other backbone, host
         HOST.replace("openmmlab", "oz1penmmlab"))]
CONFIGS = {f"psp_r{depth}_{rest}": (depth, data) for depth in (18, 50, 101)
           for rest, data in (("4xb2-40k_city-512x1024", "Cityscapes"), ("4xb4-80k_ade-640x640", "ADE20K"))}


@pytest.fixture(scope="module")
def maker():
    """tools/make_model_index.py as a module."""
    spec = importlib.util.spec_from_file_location("make_model_index", ROOT / "tools" / "make_model_index.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wheel(path: pathlib.Path, rows=ROWS, **replaced: str) -> pathlib.Path:
    """A wheel of six configs and the given rows; `replaced` replaces the text of a file by its stem."""
    models = [{"Name": name, "In Collection": "PSPNet", "Config": f"configs/psp/{name}.py", "Metadata": {"Architecture": [backbone, "PSPNet"]},
               "Results": {"Dataset": dataset, "Metrics": {"mIoU": 70 + i}}, "Weights": f"{host}/psp/{stem}.pth"}
              for i, (name, backbone, dataset, stem, host) in enumerate(rows)]
    files = {"model-index.yml": "Import: [configs/psp/metafile.yaml]", "configs/psp/metafile.yaml": json.dumps({"Models": models}),
             "configs/_base_/base.py": BASE, **{f"configs/psp/{name}.py": PSP.format(depth=d, data=data) for name, (d, data) in CONFIGS.items()}}
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("mmsegmentation-9.9.dist-info/METADATA", "")
        for name, text in files.items():
            wheel.writestr(f"mmseg/.mim/{name}", replaced.get(pathlib.PurePosixPath(name).stem, text))
    return path


@pytest.fixture(scope="module")
def models():
    return read_models()


def test_the_script_makes_the_index_and_repairs_it(maker, tmp_path, capsys):
    wheel, out = write_wheel(tmp_path / "a.whl"), tmp_path / "index.json"
    assert maker.main([str(wheel), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count(" -> ") == 5 and "psp_r101_4xb4-80k_ade-640x640: host download.oz1penmmlab.com -> download.openmmlab.com" in said
    made = read_models(out)
    assert {name: (m.url.rpartition("-")[2], m.dataset, m.dataset_type, m.crop, m.metrics["mIoU"]) for name, m in made.items()} == {
        "psp_r101_4xb2-40k_city-512x1024": ("00000002.pth", "Cityscapes", "CityscapesDataset", (512, 1024), 71),
        "psp_r101_4xb4-80k_ade-640x640": ("00000004.pth", "ADE20K", "ADE20KDataset", (640, 640), 73),
        "psp_r18_4xb2-40k_city-512x1024": ("00000003.pth", "Cityscapes", "CityscapesDataset", (512, 1024), 72),
        "psp_r50_4xb2-40k_city-512x1024": ("00000001.pth", "Cityscapes", "CityscapesDataset", (512, 1024), 70)}
    r18 = made["psp_r18_4xb2-40k_city-512x1024"]
    assert r18.url == f"{HOST}/psp/psp_r18_512x1024_40k_city_20200101_000000-00000003.pth" and r18.config == "configs/psp/psp_r18_4xb2-40k_city-512x1024.py"
    assert r18.block == {"type": "EncoderDecoder", "data_preprocessor": {"type": "SegDataPreProcessor"}, "train_cfg": {},
                         "decode_head": {"type": "PSPHead", "num_classes": 19, "loss_decode": {"type": "CrossEntropyLoss"}},
                         "backbone": {"type": "ResNetV1c", "depth": 18}}
    assert json.loads(out.read_text())["about"] == {"source": "mmsegmentation 9.9", "licence": "Apache-2.0", "address": f"{HOST}/psp/", "configs": 6,
                                                    "made_by": "tools/make_model_index.py"}
    shuffled = write_wheel(tmp_path / "b.whl", [ROWS[i] for i in (0, 3, 2, 1)][::-1], metafile=json.dumps({"Models": [
        json.loads(zipfile.ZipFile(wheel).read("mmseg/.mim/configs/psp/metafile.yaml"))["Models"][i] for i in (3, 2, 1, 0)]}))
    assert maker.main([str(shuffled), "--out", str(out), "--check"]) == 0  # the order of the rows does not count
    out.write_text(out.read_text().replace("70", "71", 1))
    assert maker.main([str(wheel), "--out", str(out), "--check"]) == 2 and "is not what this script makes" in capsys.readouterr().err


@pytest.mark.parametrize("rows, replaced, message", [
    ([(*ROWS[0][:4], "https://elsewhere.org/x"), *ROWS[1:3]], {}, "its weights are at elsewhere.org, all others at download.openmmlab.com"),
    ([("psp_x", "R-50", "ADE20K", "unknown-00000001", HOST)], {}, "psp_x: of 6 configs without a model in configs/psp, no single one fits"),
    ([ROWS[2]], {}, "no model of its data .* says the dataset's name, and '# ResNet' is none"),
    (ROWS, {"model-index": "Import: []"}, "its metafiles list no model"),
    (ROWS, {"metafile": '{"Models": [{"Name": "x"}]}'}, r"configs/psp/metafile.yaml: Models.0: no 'Results'"),
    (ROWS, {"base": "model = open('x')"}, r"^configs/_base_/base\.py:1: "),
    (ROWS, {"base": "x = 1", ROWS[0][0]: "y = 1"}, "psp_r50_4xb2-40k_city-512x1024.py: no model in it")])
def test_what_the_script_refuses(maker, tmp_path, capsys, rows, replaced, message):
    out = tmp_path / "index.json"
    assert maker.main([str(write_wheel(tmp_path / "a.whl", rows, **replaced)), "--out", str(out)]) == 2
    with pytest.raises(ConvertError, match=message):
        raise ConvertError(capsys.readouterr().err)
    assert not out.exists()
    (tmp_path / "no.whl").write_text("no zip")
    assert maker.main([str(tmp_path / "no.whl")]) == 2 and "cannot be read as a wheel" in capsys.readouterr().err


def test_the_shipped_index_is_whole(models):
    """Facts about mmsegmentation 1.2.2 that were counted in its wheel by hand."""
    import jseg.data.datasets  # noqa: F401  (registers the datasets)
    from jseg.registry import DATASETS
    text = INDEX.read_text(encoding="utf-8")
    content = json.loads(text)
    assert index_text(content) == text and content["about"]["source"] == "mmsegmentation 1.2.2" and content["about"]["configs"] == 681
    assert len(models) == 626 == len({m.config for m in models.values()}) == len({m.url for m in models.values()}) == len({m.file for m in models.values()})
    assert collections.Counter("mIoU" in m.metrics for m in models.values()) == {True: 600, False: 26}
    assert sum("mIoU(ms+flip)" in m.metrics for m in models.values()) == 551
    assert collections.Counter(m.dataset for m in models.values()) == {
        "Cityscapes": 281, "ADE20K": 176, "Pascal VOC 2012 + Aug": 60, "COCO-Stuff 164k": 20, "Pascal Context": 10, "Pascal Context 59": 10, "LoveDA": 9,
        "Potsdam": 9, "Vaihingen": 9, "COCO-Stuff 10k": 8, "iSAID": 7, "DRIVE": 6, "STARE": 6, "CHASE_DB1": 6, "HRF": 6, "NYU": 2, "Mapillary Vistas v1.2": 1}
    for model in models.values():
        assert model.dataset_type in DATASETS and model.url.startswith(f"{HOST}/") and len(model.hash_digits) == 8, model.name
        assert all(side > 0 for side in model.crop) and all(value > 0 for value in model.metrics.values()), model.name
        assert model.block["type"] and not {"pretrained", "init_cfg"} & set(model.block), model.name


@pytest.mark.parametrize("name, digits", [
    ("deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024", "cf9ce186"), ("emanet_r50-d8_4xb2-80k_cityscapes-512x1024", "c43fcef1"),
    ("fpn_poolformer_s36_8x4_512x512_40k_ade20k", "b47e607d"),  # three dead paths
    ("pspnet_r101-d8_4xb2-80k_cityscapes-769x769", "dba412fa"),  # host
    ("bisenetv1_r101-d32_4xb4-160k_coco-stuff164k-512x512", "c6b32c3b"), ("bisenetv1_r50-d32-in1k-pre_4xb4-160k_coco-stuff164k-512x512", "66747911"),
    ("deeplabv3plus_r101-d8_4xb4-80k_ade20k-512x512", "d5730af7"), ("deeplabv3plus_r101-d8_4xb4-160k_ade20k-512x512", "38ed86bb"),
    ("fastfcn_r50-d32_jpu_aspp_4xb4-80k_cityscapes-512x1024", "72220849"), ("fastfcn_r50-d32_jpu_psp_4xb4-80k_cityscapes-512x1024", "77e87b0a"),
    ("fastfcn_r50-d32_jpu_enc_4xb4-80k_cityscapes-512x1024", "e1eb6dbb"), ("ocrnet_hr18s_4xb4-160k_ade20k-512x512", "8e913058"),
    ("ocrnet_hr18_4xb4-160k_ade20k-512x512", "d8fcd9d1"), ("pspnet_r50-d32_4xb2-80k_cityscapes-512x1024", "9092b254"),
    ("twins_svt-l_uperhead_8xb2-160k_ade20k-512x512", "3e2cae61"),  # nine pairs
    ("deeplabv3plus_r101-d8_4xb4-40k_pascal-context-480x480", "d3c8a29e"), ("deeplabv3plus_r101-d8_4xb4-80k_pascal-context-480x480", "145d3ee8")])
def test_repaired_rows(models, name, digits):
    """The weights file's stem names the right config; no config of another row lost its file by it."""
    assert models[name].hash_digits == digits
    assert models[name].dataset_type != "OCRNet" and models["ocrnet_hr48_4xb2-80k_cityscapes-512x1024"].dataset == "Cityscapes"


@pytest.mark.parametrize("like, data, count, first", [
    ("segformer-b0", "ade20k", 1, "segformer_mit-b0_8xb2-160k_ade20k-512x512"), ("SegFormer B0", "ADE", 1, "segformer_mit-b0_8xb2-160k_ade20k-512x512"),
    ("segformerb0 cityscapes", "", 1, "segformer_mit-b0_8xb1-160k_cityscapes-1024x1024"), ("resnet50 deeplabv3", "voc", 2, "deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512"),
    ("DeepLabV3+ r50", "", 13, "deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024"), ("bisenet v2", "", 4, "bisenetv2_fcn_4xb8-160k_cityscapes-1024x1024"),
    ("ocrnet hrnet-w48", "ade", 2, "ocrnet_hr48_4xb4-160k_ade20k-512x512"), ("pspnet", "context59", 2, "pspnet_r101-d8_4xb4-80k_pascal-context-59-480x480"),
    ("pspnet_r50-d8_512x1024_40k_cityscapes", "", 1, "pspnet_r50-d8_4xb2-40k_cityscapes-512x1024"),  # the name of MMSegmentation 0.x
    ("maskformer swin-t", "", 1, "maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512"), ("vpd", "", 2, "vpd_sd_4xb8-25k_nyu-480x480")])
def test_search_forgives(models, like, data, count, first):
    found = search_models(models, like.split(), data.split())
    assert (len(found), found[0].name) == (count, first)
    published = [model.metrics.get("mIoU", 0) for model in found]
    assert published == sorted(published, reverse=True)


@pytest.mark.parametrize("like, data, message", [("segfromer", "", "'segfromer' is in none of the 626 models; did you mean 'segformer'"),
                                                 ("segformer", "voc", "'voc' is in none of the 13 models; known datasets here: ADE20K, Cityscapes"),
                                                 ("setr vit-b", "", "no model has all; leave one out"), ("...", "", "no letter or digit in it")])
def test_search_says_what_is_not_there(models, like, data, message):
    with pytest.raises(ConvertError, match=message):
        search_models(models, like.split(), data.split())


def test_names_mean_one_thing(models):
    """The old names stay; MMSegmentation's are added, and a file that has two names is the same file."""
    ours, known = read_index(), read_weights()
    assert set(known) == set(ours) | set(models) and len(known) == len(ours) + 626 and {known[name] for name in ours} == set(ours.values())
    assert find_model("segnext_base_ade20k_mmseg", models).name == "segnext_mscan-b_1xb16-adamw-160k_ade20k-512x512"
    assert find_model("segnext_base_ade20k_authors", models) is None and find_model("x", models) is None
    for name, entry in ours.items():
        twin = next((model.weights() for model in models.values() if model.url == entry.url), None)
        assert twin is None or (twin.file, twin.sha256, twin.miou, twin.source, twin.licence) == (
            entry.file, entry.sha256, entry.miou, entry.source, entry.licence), name


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
    for part in ("SegNeXt (MSCAN-T, SegNeXt)", "mIoU 41.5, mIoU(ms+flip) 42.59", "4,263,414", "6.61 G for one picture of 512x512", "05bd8466.pth"):
        assert part in text
    model = models["vpd_sd_4xb8-25k_nyu-512x512"]
    lacking = card({**gather_facts(model, count=False), "missing_types": ["VPD"]})
    assert "RMSE 0.258" in lacking and "not yet; jseg lacks VPD" in lacking and model.url in lacking


def test_the_command(capsys):
    assert main(["models", "--like", "segnext", "--data", "ade20k"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["segnext_mscan-l_1xb16-adamw-160k_ade20k-512x512", "ADE20K", "50.99/52.1", "48,926,550", "66.3", "yes"]
    assert lines[-1].startswith("4 of 626 models, 4 of them build here.")
    assert main(["models", "--data", "nyu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["metrics"] for row in facts] == [{"RMSE": 0.253}, {"RMSE": 0.258}] and facts[0]["url"].endswith("66144bc4.pth")
    assert main(["models"]) == 0 and len(capsys.readouterr().out.splitlines()) == 1 + 626 + 2
    assert main(["models", "segformer-b0"]) == 2 and "its words fit segformer_mit-b0_8xb1-160k_cityscapes" in capsys.readouterr().err
    assert main(["models", "x", "--like", "y"]) == 2 and "a name stands alone" in capsys.readouterr().err


def test_a_download_is_refused_before_it_begins(models, monkeypatch, tmp_path, capsys):
    """Types that jseg lacks, or options: one line with the address; what builds is fetched."""

    def fetch(entry, folder, **options):
        raise ConvertError(f"fetching {entry.url}")

    monkeypatch.setattr(weights_index, "fetch", fetch)
    words = ["--dir", str(tmp_path)]
    names = {"segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512", "segnext_tiny_ade20k_mmseg", "segnext_tiny_ade20k_authors"}
    for name in names:
        assert main(["weights", "get", name, *words]) == 2 and capsys.readouterr().err.startswith("fetching http")
    monkeypatch.setattr(MODELS, "_entries", {name: MODELS.get(name) for name in ("EncoderDecoder", "MSCAN", "LightHamHead")})
    model = models["segformer_mit-b0_8xb2-160k_ade20k-512x512"]
    assert main(["weights", "get", model.name, *words]) == 2
    assert capsys.readouterr().err == (f"{model.name}: jseg has no MixVisionTransformer, SegformerHead yet, so its weights could not be used; "
                                       f"nothing was fetched. By hand: {model.url}\n")
    MODELS.register("MixVisionTransformer")(type("MixVisionTransformer", (), {"__init__": lambda self, embed_dims, window: None}))
    MODELS.register("SegformerHead")(type("SegformerHead", (), {"__init__": lambda self, in_channels: None}))
    assert main(["weights", "get", model.name, *words]) == 2
    said = capsys.readouterr().err
    assert "jseg cannot build it yet (model.backbone: MixVisionTransformer needs 'window')" in said and said.count("\n") == 1 and model.url in said
    assert not list(tmp_path.iterdir())

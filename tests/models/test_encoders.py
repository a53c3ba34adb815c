"""The encoders past MMSegmentation: sizes as published, what is frozen, poolings and windows against their definitions,
mistakes in configs. `tests/convert/test_releases.py` holds their values to the libraries they come from.
"""

import jittor as jt
import numpy as np
import pytest

from jseg.convert.mmseg_config import translate_config
from jseg.errors import ConfigError
from jseg.layers import InvertedResidualV3, halve_map, named_parameters, pool_to_size
from jseg.layers.init import without_values
from jseg.layers.windows import from_windows, to_windows
from jseg.models.backbones.efficientnet import layer_sizes
from jseg.models.backbones.hrformer import HRFormer
from jseg.models.backbones.van import VAN
from jseg.registry import MODELS

pytestmark = pytest.mark.usefixtures("few_kernels")
# parameters with the ImageNet classifier: torchvision 0.29 counts them, and papers (millions, one digit)
CLASSES = 1000


def numbers(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def parameters(block: dict, classifier: int = 0) -> int:
    """Of a backbone and of a linear classifier over its last map."""
    with without_values():
        model = MODELS.build(block)
    own = sum(value.numel() for value in named_parameters(model).values())
    return own + (classifier and (model.out_channels[-1] + 1) * classifier)


@pytest.mark.parametrize(("arch", "millions"), [
    ("b0", 4.1), ("b1", 13.9), ("b2", 26.6), ("b3", 44.8), ("b4", 60.3), ("b5", 90.0), ("b6", 200.0)])
def test_van_has_the_papers_sizes(arch, millions):
    """Visual Attention Network, sec. 4.1; large ones are rounded there."""
    assert parameters({"type": "VAN", "arch": arch}, CLASSES) / 1e6 == pytest.approx(millions, rel=0.004)


@pytest.mark.parametrize(("arch", "count"), [
    ("b0", 5_288_548), ("b1", 7_794_184), ("b2", 9_109_994), ("b3", 12_233_232), ("b4", 19_341_616),
    ("b5", 30_389_784), ("b6", 43_040_704), ("b7", 66_347_960)])
def test_efficientnet_has_torchvisions_sizes(arch, count):
    assert parameters({"type": "EfficientNet", "arch": arch}, CLASSES) == count


def test_the_largest_efficientnet_and_the_other_convolutional_encoders():
    assert round(parameters({"type": "EfficientNet", "arch": "l2"}, CLASSES) / 1e6) == 480  # Noisy Student, table 7
    assert layer_sizes("l2")[0] == 136
    assert parameters({"type": "GoogLeNet"}, CLASSES) == 6_624_904  # torchvision, without the auxiliary classifiers
    features = {11: 9_220_480, 13: 9_404_992, 16: 14_714_688, 19: 20_024_384}  # torchvision's `features`
    assert {depth: parameters({"type": "VGG", "depth": depth}) for depth in features} == features


FROZEN = {"VAN": ({"frozen_stages": 1}, ("patch_embed1.", "block1.", "norm1.")),
          "VGG": ({"frozen_stages": 2}, ("features.0.", "features.2.")),
          "GoogLeNet": ({"frozen_stages": 0}, ("conv1.", "conv2.", "conv3.")),
          "EfficientNet": ({"frozen_stages": 2}, ("layers.0.", "layers.1.")),
          "HRFormer": ({"frozen_stages": 1}, ("conv", "bn", "layer1.", "transition1."))}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_parts_stand_still_in_training(name, rng):
    words, parts = FROZEN[name]
    jt.set_global_seed(0)
    model = MODELS.build({**MODELS.get(name).TINY, **words})
    frozen = {key for key, value in named_parameters(model).items() if value.is_stop_grad()}
    assert frozen == {key for key in named_parameters(model) if key.startswith(parts)}
    before = model.state_dict("numpy")
    model.train()
    for value in model(jt.array(numbers(rng, 2, 3, 64, 96))):
        value.sync()
    moved = {key for key, value in model.state_dict("numpy").items() if not np.array_equal(value, before[key])}
    assert moved and not [key for key in moved if key.startswith(parts)]


def test_layers_that_no_map_needs_are_frozen():
    model = MODELS.build({**MODELS.get("EfficientNet").TINY, "out_indices": [2, 3]})
    trained = {key.split(".")[1] for key, value in named_parameters(model).items() if not value.is_stop_grad()}
    assert trained == {"0", "1", "2", "3"} and "layers.6.conv.weight" in model.state_dict()


def test_windows_filled_up_on_all_sides(rng):
    x, size = numbers(rng, 2, 5 * 8, 3), (5, 8)
    windows = to_windows(jt.array(x), size, 3, centred=True)
    filled = np.pad(x.reshape(2, 5, 8, 3), ((0, 0), (0, 1), (0, 1), (0, 0)))  # one row and one column are missing
    expected = filled.reshape(2, 2, 3, 3, 3, 3).transpose(0, 1, 3, 2, 4, 5).reshape(12, 9, 3)
    np.testing.assert_array_equal(windows.numpy(), expected)
    np.testing.assert_array_equal(from_windows(windows, size, 3, centred=True).numpy(), x)
    four = to_windows(jt.array(x), size, 7, centred=True).numpy().reshape(2, 2, 7, 7, 3)  # 5 -> 7: one on each side
    np.testing.assert_array_equal(four[:, 0, 1:6, 3:], x.reshape(2, 5, 8, 3)[:, :, :4])
    assert not four[:, 0, 0].any() and not four[:, 0, 6].any() and not four[:, 0, :, :3].any()


@pytest.mark.parametrize(("shape", "size"), [((8, 12), (4, 4)), ((7, 5), (3, 2)), ((4, 9), (4, 2)), ((3, 3), (1, 1))])
def test_pooling_to_a_size(shape, size, rng):
    x = numbers(rng, 2, 3, *shape) - 1.0  # mostly negative: zeros around the map win some windows
    kernel = [-(-side // cells) for side, cells in zip(shape, size)]
    missing = [k * cells - side for k, cells, side in zip(kernel, size, shape)]
    filled = np.pad(x, ((0, 0), (0, 0), *((m // 2, m - m // 2) for m in missing)))
    expected = filled.reshape(2, 3, size[0], kernel[0], size[1], kernel[1]).max((3, 5))
    np.testing.assert_array_equal(pool_to_size(jt.array(x), size).numpy(), expected)


def test_halving_keeps_a_side_of_one(rng):
    x = numbers(rng, 1, 2, 1, 6)
    np.testing.assert_array_equal(halve_map(jt.array(x)).numpy(), x.reshape(1, 2, 1, 3, 2).max(4))
    x = numbers(rng, 1, 2, 5, 7)
    np.testing.assert_array_equal(halve_map(jt.array(x)).numpy(), x[:, :, :4, :6].reshape(1, 2, 2, 2, 3, 2).max((3, 5)))


def test_stochastic_depth_of_an_inverted_residual_block(rng):
    layer = InvertedResidualV3(8, 8, mid_channels=16, kernel_size=3, norm_cfg={"type": "BN"}, act_cfg={"type": "Swish"},
                               drop_path_prob=0.999)
    x = jt.array(numbers(rng, 3, 8, 5, 7))
    jt.set_global_seed(987654321)
    np.testing.assert_array_equal(layer(x).numpy(), x.numpy())
    layer.eval()
    assert not np.allclose(layer(x).numpy(), x.numpy())


@pytest.mark.parametrize(("block", "message"), [
    ({"type": "VAN", "arch": "b7"}, "VAN: unknown variant 'b7'"),
    ({"type": "VAN", "arch": {"depths": [1]}}, "accepted: embed_dims, depths and ffn_ratios"),
    ({**VAN.TINY, "out_indices": [4]}, "out_indices .* lie in 0 to 3"),
    ({**VAN.TINY, "depths": [1, 1]}, "VAN: depths needs 4 values"),
    ({"type": "VGG", "depth": 12}, "depth 12 .accepted: 11, 13, 16, 19"),
    ({"type": "VGG", "depth": 16, "num_stages": 4}, "dilations .*one per stage"),
    ({"type": "GoogLeNet", "out_indices": [4]}, "lie in 0 to 3"),
    ({"type": "EfficientNet", "arch": "b9"}, "arch is 'b9'"),
    ({"type": "EfficientNet", "conv_cfg": {"type": "Conv1d"}}, "accepted: .type: Conv2dAdaptivePadding"),
    ({**HRFormer.TINY, "extra": {**HRFormer.TINY["extra"], "with_pad_mask": True}}, "with_pad_mask false"),
    ({**HRFormer.TINY, "extra": {**HRFormer.TINY["extra"], "upsample": {"mode": "area"}}}, "upsample is"),
    ({**HRFormer.TINY, "extra": {**HRFormer.TINY["extra"], "stage2": {"block": "HRFORMERBLOCK"}}}, "accepted, all"),
    ({**HRFormer.TINY, "extra": {**HRFormer.TINY["extra"], "stage1": {
        **HRFormer.TINY["extra"]["stage2"], "num_branches": 1}}}, "accepted: BASIC, BOTTLENECK"),
    ({"type": "NASFPN", "in_channels": [8, 8], "out_channels": 8, "num_outs": 4, "stack_times": 1}, "it is 5"),
    ({"type": "NASFPN", "in_channels": [8] * 5, "out_channels": 8, "num_outs": 5, "stack_times": 0}, "1 and more")])
def test_mistakes_are_named(block, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build(block)


def test_blocks_of_other_libraries_are_ours():
    """Scopes before a type, and a word of the authors' VAN."""
    neck = {"type": "mmdet.NASFPN", "in_channels": [8, 16, 16, 32], "out_channels": 8, "num_outs": 5, "stack_times": 7}
    found = translate_config({"model": {
        "type": "EncoderDecoder", "backbone": {"type": "VAN", "in_chans": 4, "embed_dims": [8, 16, 16, 32],
                                               "depths": [1, 1, 1, 1]},
        "neck": neck, "decode_head": {"type": "FPNHead", "num_classes": 3}}}, source="a.py")
    config = found.config
    assert config["model"]["neck"] == {**neck, "type": "NASFPN"} and config["model"]["backbone"]["in_channels"] == 4
    assert not [note for note in found.notes if "backbone" in note or "neck" in note]

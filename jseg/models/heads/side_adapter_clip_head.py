"""SideAdapterCLIPHead: a narrow transformer beside CLIP proposes masks, and tells CLIP's last blocks where to look, so
that they name what is in each.

Paper: Xu et al., "Side Adapter Network for Open-Vocabulary Semantic Segmentation" (SAN), CVPR 2023.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/san_head.py (Apache-2.0; after MendelXu/SAN, MIT), whose words,
keys and arithmetic these are.

Deviations:
- in CLIP's last blocks pictures' tokens attend to each other and queries to themselves and the patches, in two products
  instead of one whose mask has -100 elsewhere; `cross_attn`, which asks for this, therefore changes nothing;
- CLIP's maps are added behind every block that `fusion_index` names (upstream: behind those below its length);
- `sos_token_format` is cls_token (upstream fails with the others);
- in a step split over ranks losses are averaged over all ranks' masks, see `SetCriterion`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct, Linear, PatchEmbed, adaptive_max_pool, build_norm, relu, to_map
from jseg.layers.clip import CLIPLayer
from jseg.layers.freeze import freeze_except
from jseg.layers.init import normal, trunc_normal
from jseg.layers.positions import resize_positions
from jseg.layers.products import mix_maps, pair_products
from jseg.layers.transformer import TransformerEncoderLayer
from jseg.losses.set_criterion import SetCriterion
from jseg.models.heads.base import Head
from jseg.models.heads.mask_head import DICE_LOSS, MASK_LOSS, MATCHING, class_scores, default_class_loss
from jseg.models.text_encoders.clip_text_encoder import unit
from jseg.registry import MODELS, construct

__all__ = ["SideAdapterCLIPHead"]

_LN = MappingProxyType({"type": "LN"})
_GELU = MappingProxyType({"type": "GELU"})
_SIDE_PX = 640  # of the pictures that the positions are for
_TERMS = MappingProxyType({"loss_cls": "loss_cls_ce", "loss_mask": "loss_mask_ce", "loss_dice": "loss_mask_dice"})


class _MLP(nn.Module):
    """Layers with ReLU between them: linear ones for tokens (N, L, C), 1x1 convolutions for maps (N, C, H, W)."""

    def __init__(self, layer: type, widths: Sequence[int]):
        super().__init__()
        more = (1,) if layer is Conv2d else ()
        self.layers = nn.Sequential(*[layer(before, after, *more) for before, after in zip(widths, widths[1:])])

    def execute(self, x: jt.Var) -> jt.Var:
        *inner, last = self.layers
        for layer in inner:
            x = relu(layer(x))
        return last(x)


class MaskDecoder(nn.Module):
    """Masks of the queries, and what they add to the scores of CLIP's attention.

    Args:
        channels: width of queries and map.
        num_heads, num_layers: heads, and layers that get scores of their own (1: all the same).
        embed_channels, mlp_channels, num_mlp: width in which queries and positions are compared, width and number of
            the layers before.
        rescale: learn a factor and a shift of the scores.
    Shape:
        queries: (N, Q, channels); maps: (N, channels, h, w) -> masks (N, Q, h, w), scores num_layers times
        (N, num_heads, Q, h, w)
    """

    def __init__(self, channels: int, num_heads: int = 1, num_layers: int = 1, embed_channels: int = 256,
                 mlp_channels: int = 256, num_mlp: int = 3, rescale: bool = False):
        super().__init__()
        self.num_heads, self.num_layers = num_heads, num_layers
        inner = [channels, *[mlp_channels] * (num_mlp - 1)]
        self.query_mlp = _MLP(Linear, [*inner, embed_channels])
        self.pix_mlp = _MLP(Conv2d, [*inner, embed_channels])
        self.attn_mlp = _MLP(Conv2d, [*inner, embed_channels * num_heads * num_layers])
        self.bias_scaling = Linear(1, 1) if rescale else None

    def execute(self, queries: jt.Var, maps: jt.Var) -> tuple[jt.Var, list[jt.Var]]:
        queries = self.query_mlp(queries)
        (n, count, c), (height, width) = queries.shape, maps.shape[2:]
        keys = self.attn_mlp(maps).reshape(n * self.num_layers * self.num_heads, c, height, width)
        each = queries.unsqueeze(1).broadcast((n, self.num_layers * self.num_heads, count, c)).reshape(-1, count, c)
        scores = mix_maps(each, keys)
        if self.bias_scaling is not None:
            scores = scores * self.bias_scaling.weight.reshape(1, 1, 1, 1) + self.bias_scaling.bias.reshape(1, 1, 1, 1)
        scores = scores.reshape(n, self.num_layers, self.num_heads, count, height, width)
        return mix_maps(queries, self.pix_mlp(maps)), [scores[:, i] for i in range(self.num_layers)]


class SideAdapterNetwork(nn.Module):
    """A narrow vision transformer of queries and patches, to which CLIP's maps are added.

    Args:
        in_channels, clip_channels, embed_dims: channels of picture and CLIP's maps, width of the tokens.
        patch_size, patch_bias: side of the patches in pixels, bias of their convolution.
        num_queries: Q.
        fusion_index: blocks behind which CLIP's maps are added, in their order; 0: before the first.
        cfg_encoder: `{num_encode_layer, num_heads, mlp_ratio}` of the blocks.
        cfg_decoder: words of `MaskDecoder`.
        norm_cfg: of the blocks.
    Shape:
        images: (N, in_channels, H, W); maps: list of (N, clip_channels, h', w') -> per reading masks and scores, see
        `MaskDecoder`
    """

    def __init__(self, cfg_encoder: Mapping, cfg_decoder: Mapping, in_channels: int = 3, clip_channels: int = 768,
                 embed_dims: int = 240, patch_size: int = 16, patch_bias: bool = True, num_queries: int = 100,
                 fusion_index: Sequence[int] = (0, 1, 2, 3), norm_cfg: dict = _LN):
        super().__init__()
        words = {"num_encode_layer", "num_heads", "mlp_ratio"}
        if set(cfg_encoder) != words:
            raise ConfigError(f"cfg_encoder has {sorted(cfg_encoder)}; needed are {', '.join(sorted(words))}")
        self.fusion_index, self.side = tuple(fusion_index), _SIDE_PX // patch_size
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, padding=0, bias=patch_bias)
        self.pos_embed = trunc_normal((1, self.side**2, embed_dims))
        self.query_pos_embed, self.query_embed = (normal((1, num_queries, embed_dims), 0.02) for _ in range(2))
        self.encode_layers = nn.Sequential(*[
            TransformerEncoderLayer(embed_dims, cfg_encoder["num_heads"], cfg_encoder["mlp_ratio"] * embed_dims,
                                    act_cfg=_GELU, norm_cfg=norm_cfg)
            for _ in range(cfg_encoder["num_encode_layer"])])
        self.conv_clips = nn.Sequential(*[
            nn.Sequential(build_norm({"type": "LN2d", "eps": 1e-6}, clip_channels)[1],
                          ConvNormAct(clip_channels, embed_dims, 1, act_cfg=None)) for _ in self.fusion_index])
        self.mask_decoder = construct(MaskDecoder, cfg_decoder, "cfg_decoder", channels=embed_dims)

    def execute(self, images: jt.Var, maps: list[jt.Var], deep: Sequence[int]) -> list[tuple[jt.Var, list[jt.Var]]]:
        """Readings behind the blocks of `deep`, counted from 1, and behind the last."""
        x, size = self.patch_embed(images.transpose(0, 2, 3, 1))
        n, length, _ = x.shape
        places = resize_positions(self.pos_embed, (self.side, self.side), size)
        places = jt.concat([self.query_pos_embed, places], 1)
        queries = self.query_embed.broadcast((n, *self.query_embed.shape[1:]))
        x = self._fuse(0, jt.concat([queries, x], 1) + places, maps, size)
        readings, last = [], len(self.encode_layers)
        for i, layer in enumerate(self.encode_layers, 1):
            x = self._fuse(i, layer(x), maps, size)
            if i in deep or i == last:
                readings.append(self.mask_decoder(x[:, :-length], to_map(x[:, -length:], size)))
            if i < last:
                x = x + places
        return readings

    def _fuse(self, index: int, x: jt.Var, maps: list[jt.Var], size: tuple[int, int]) -> jt.Var:
        """Tokens with the CLIP map of this place added to the patches, if it has one."""
        if index not in self.fusion_index:
            return x
        place, (n, _, c) = self.fusion_index.index(index), x.shape
        added = ops.bilinear_resize(self.conv_clips[place](maps[place]), size).reshape(n, c, -1).transpose(0, 2, 1)
        length = added.shape[1]
        return jt.concat([x[:, :-length], x[:, -length:] + added], 1)


def hidden_queries(count: int, length: int) -> np.ndarray:
    """What is added to the scores of queries, and of patches behind them: a query sees itself and all patches.

    Returns:
        (1, count, count + length) float32, 0 or -inf.
    """
    apart = np.where(np.eye(count, dtype=bool), 0.0, -np.inf).astype(np.float32)
    return np.concatenate([apart, np.zeros((count, length), np.float32)], 1)[None]


class MaskRecognition(nn.Module):
    """CLIP's last blocks, frozen: every query starts as the class token and looks where its scores are high.

    Args:
        sos_token_format, sos_token_num: cls_token, and Q.
        num_layers, embed_dims, num_heads, mlp_ratio, qkv_bias: of the blocks.
        cross_attn: no effect, see the head of this file.
        num_fcs: no effect, as upstream.
        out_dims: D.
        final_norm: bring the results to length 1.
        act_cfg, norm_cfg: of the feed-forward blocks, and of the last norm.
        frozen_exclude: parts of names of the parameters that are trained; "all" for every parameter.
    Shape:
        tokens: (N, 1 + L, embed_dims), the class token first; scores: one for all blocks, or one each, (N, num_heads,
        Q, L) -> (N, Q, D)
    """

    def __init__(self, sos_token_format: str = "cls_token", sos_token_num: int = 100, num_layers: int = 3,
                 cross_attn: bool = False, embed_dims: int = 768, num_heads: int = 12, mlp_ratio: int = 4,
                 num_fcs: int = 2, qkv_bias: bool = True, out_dims: int = 512, final_norm: bool = True,
                 act_cfg: dict = _GELU, norm_cfg: dict = _LN, frozen_exclude: Sequence[str] = ()):
        super().__init__()
        if sos_token_format != "cls_token":
            raise ConfigError(f"maskgen_cfg: sos_token_format is {sos_token_format!r}; accepted: cls_token")
        self.num_heads, self.final_norm = num_heads, final_norm
        self.layers = nn.Sequential(*[CLIPLayer(embed_dims, num_heads, mlp_ratio * embed_dims, qkv_bias=qkv_bias,
                                                act_cfg=act_cfg, norm_cfg=_LN) for _ in range(num_layers)])
        self.ln_post = build_norm(norm_cfg, embed_dims, channel_first=False)[1]
        self.proj = Linear(embed_dims, out_dims, bias=False)
        freeze_except(self, frozen_exclude)

    def execute(self, tokens: jt.Var, scores: list[jt.Var]) -> jt.Var:
        n, _, count, _ = scores[0].shape
        queries = tokens[:, :1].broadcast((n, count, tokens.shape[2]))
        apart = jt.array(hidden_queries(count, scores[0].shape[3]))
        for i, layer in enumerate(self.layers):
            own, others = layer.project(queries), layer.project(tokens)
            keys = jt.concat([own[:, :, 1:], others[:, 1:, 1:]], 1)  # (N, Q + L, 2, heads, width)
            added = scores[i if len(scores) > 1 else 0]
            added = jt.concat([jt.zeros((n, self.num_heads, count, count)), added], 3)  # (N, heads, Q, Q + L)
            queries = layer.close(queries, ops.attention(own[:, :, 0], keys, bias=added, mask=apart))
            if i + 1 < len(self.layers):
                tokens = layer.close(tokens, ops.attention(others))
        found = self.proj(self.ln_post(queries))
        return unit(found) if self.final_norm else found

    def pooled(self, scores: jt.Var, size: tuple[int, int]) -> jt.Var:
        """Scores (N, 1 or num_heads, Q, h, w) on CLIP's grid, the largest of each cell: (N, num_heads, Q, L)."""
        n, heads, count, h, w = scores.shape
        found = adaptive_max_pool(scores.reshape(n, heads * count, h, w), size).reshape(n, heads, count, -1)
        return found.broadcast((n, self.num_heads, *found.shape[2:])) if heads == 1 else found


@MODELS.register()
class SideAdapterCLIPHead(Head):
    """Side adapter and mask recognition. Outputs are readings as of `MaskHead`.

    Args:
        num_classes: K.
        san_cfg, maskgen_cfg: words of `SideAdapterNetwork` and `MaskRecognition`.
        deep_supervision_idxs: blocks of the adapter, counted from 1, that are read in training, besides the last.
        train_cfg: see `SetCriterion`.
        loss_decode: three losses by their names: loss_cls_ce (CrossEntropyLoss), loss_mask_ce (CrossEntropyLoss with
            use_sigmoid) and loss_mask_dice (DiceLoss).
        align_corners, ignore_index: facts of the head; masks are always resized with align_corners False, as upstream.
    Shape:
        features: [pictures (N, 3, H, W), CLIP's (map, class token) pairs, vectors of the classes (K + 1, D)]
    Raises:
        ConfigError: numbers of queries or heads that disagree, or losses of other names.
    """

    TINY = MappingProxyType({
        "type": "SideAdapterCLIPHead", "deep_supervision_idxs": [1],
        "san_cfg": {"clip_channels": 16, "embed_dims": 8, "num_queries": 7, "fusion_index": [0, 1],
                    "cfg_encoder": {"num_encode_layer": 2, "num_heads": 2, "mlp_ratio": 2},
                    "cfg_decoder": {"num_heads": 2, "num_layers": 1, "embed_channels": 8, "mlp_channels": 8,
                                    "num_mlp": 2, "rescale": True}},
        "maskgen_cfg": {"sos_token_num": 7, "num_layers": 2, "embed_dims": 16, "num_heads": 2, "mlp_ratio": 2,
                        "out_dims": 8},
        "train_cfg": {"num_points": 50, "assigner": MATCHING}})

    def __init__(self, num_classes: int, san_cfg: Mapping, maskgen_cfg: Mapping, deep_supervision_idxs: Sequence[int],
                 train_cfg: Mapping | None = None, loss_decode: Sequence[Mapping] | None = None,
                 align_corners: bool = False, ignore_index: int = 255):
        super().__init__()
        self.num_classes, self.align_corners, self.ignore_index = num_classes, align_corners, ignore_index
        self.deep_supervision_idxs = tuple(deep_supervision_idxs)
        self.side_adapter_network = construct(SideAdapterNetwork, san_cfg, "san_cfg")
        self.rec_with_attnbias = construct(MaskRecognition, maskgen_cfg, "maskgen_cfg")
        decoder, recognition = self.side_adapter_network.mask_decoder, self.rec_with_attnbias
        queries = self.side_adapter_network.query_embed.shape[1]
        if queries != maskgen_cfg.get("sos_token_num", 100) or decoder.num_heads not in (1, recognition.num_heads) \
                or decoder.num_layers not in (1, len(recognition.layers)):
            raise ConfigError("san_cfg and maskgen_cfg must agree: num_queries and sos_token_num "
                              f"({queries}, {maskgen_cfg.get('sos_token_num', 100)}), and of cfg_decoder num_heads "
                              f"(1 or {recognition.num_heads}) and num_layers (1 or {len(recognition.layers)})")
        self.criterion = SetCriterion(num_classes, **_losses(loss_decode, num_classes), train_cfg=train_cfg,
                                      ignore_index=ignore_index, at_points=True)

    def execute(self, features: list, previous: jt.Var | None = None) -> list[tuple[jt.Var, jt.Var]]:
        images, pairs, classes = features
        (last, token), recognition = pairs[-1], self.rec_with_attnbias
        if len(pairs) != len(self.side_adapter_network.fusion_index):
            raise ConfigError(f"the backbone gives {len(pairs)} maps, fusion_index has places for "
                              f"{len(self.side_adapter_network.fusion_index)}")
        size = tuple(last.shape[2:])
        tokens = jt.concat([token.unsqueeze(1), last.reshape(*last.shape[:2], -1).transpose(0, 2, 1)], 1)
        deep = self.deep_supervision_idxs if self.is_training() else ()
        found = []
        for masks, scores in self.side_adapter_network(images, [pair[0] for pair in pairs], deep):
            vectors = recognition(tokens, [recognition.pooled(each, size) for each in scores])
            found.append((pair_products(vectors, classes.unsqueeze(0)), masks))
        return found

    def loss(self, outputs: list[tuple[jt.Var, jt.Var]], labels: jt.Var) -> dict[str, jt.Var]:
        found = {}
        for key, value in self.criterion(outputs, labels).items():
            layer, _, name = key.rpartition(".")
            prefix = f"d{self.deep_supervision_idxs[int(layer[1:])]}." if layer else ""
            found[prefix + _TERMS[name]] = value
        return found

    def scores(self, outputs: list[tuple[jt.Var, jt.Var]], size: tuple[int, int]) -> jt.Var:
        """At `size`, see `MaskHead.scores`."""
        return class_scores(*outputs[-1], size)


def _losses(blocks: Sequence[Mapping] | None, num_classes: int) -> dict[str, Mapping]:
    """The three blocks of `SetCriterion`, from the list that upstream writes."""
    if blocks is None:
        return {"loss_cls": default_class_loss(num_classes, 2.0), "loss_mask": MASK_LOSS, "loss_dice": DICE_LOSS}
    named = {block.get("loss_name"): block for block in blocks}
    if sorted(map(str, named)) != sorted(_TERMS.values()) or len(blocks) != len(_TERMS):
        raise ConfigError(f"loss_decode names {[block.get('loss_name') for block in blocks]}; accepted: one each of "
                          f"{', '.join(_TERMS.values())}")
    return {key: {word: value for word, value in named[name].items() if word not in ("loss_name", "ignore_index")}
            for key, name in _TERMS.items()}

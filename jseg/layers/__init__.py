"""Building blocks that several models share; the only copy of each."""

from jseg.layers.activation import PReLU, build_activation, gelu, hard_sigmoid, hard_swish, relu
from jseg.layers.attention import MultiheadAttention, ReducedAttention, check_attn_drop, check_heads
from jseg.layers.channel_gate import AttentionRefinement, ChannelGate, GatedFusion
from jseg.layers.conv import AdaptiveConv2d, Conv1d, Conv2d, ConvNormAct, DepthwiseSeparableConv, conv_norm, pair
from jseg.layers.criss_cross import CrissCrossAttention
from jseg.layers.divisible import make_divisible
from jseg.layers.drop import DropPath, Dropout, Dropout2d
from jseg.layers.feed_forward import FFN, mix_ffn
from jseg.layers.inverted_residual import InvertedResidual, InvertedResidualV3
from jseg.layers.non_local import DisentangledNonLocal2d, NonLocal2d
from jseg.layers.norms import BatchNorm2d, GroupNorm, LayerNorm, build_norm
from jseg.layers.numbered import Numbered
from jseg.layers.parameters import buffer_names, count_parameters, named_parameters
from jseg.layers.pool import (adaptive_avg_pool, adaptive_max_pool, avg_pool, halve_map, max_pool, pool_to_size,
                              window_means)
from jseg.layers.resize import nearest_resize
from jseg.layers.scale import Scale
from jseg.layers.self_attention import SelfAttentionBlock
from jseg.layers.squeeze import SqueezeExcitation
from jseg.layers.tokens import Linear, PatchEmbed, PatchMerging, pad_corner, project_patches, to_map, to_tokens
from jseg.layers.top import choose_points, lead_of_best, top_places

__all__ = ["AdaptiveConv2d", "AttentionRefinement", "BatchNorm2d", "ChannelGate", "Conv1d", "Conv2d", "ConvNormAct",
           "CrissCrossAttention", "DepthwiseSeparableConv", "DisentangledNonLocal2d", "DropPath", "Dropout",
           "Dropout2d", "FFN", "GatedFusion", "GroupNorm", "InvertedResidual", "InvertedResidualV3", "LayerNorm",
           "Linear", "MultiheadAttention", "NonLocal2d", "Numbered", "PReLU", "PatchEmbed", "PatchMerging",
           "ReducedAttention", "Scale", "SelfAttentionBlock", "SqueezeExcitation", "adaptive_avg_pool",
           "adaptive_max_pool", "avg_pool", "buffer_names", "build_activation", "build_norm", "check_attn_drop",
           "check_heads", "choose_points", "conv_norm", "count_parameters", "gelu", "halve_map", "hard_sigmoid",
           "hard_swish", "lead_of_best", "make_divisible", "max_pool", "mix_ffn", "named_parameters", "nearest_resize",
           "pad_corner", "pair", "pool_to_size", "project_patches", "relu", "to_map", "to_tokens", "top_places",
           "window_means"]

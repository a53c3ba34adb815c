"""Building blocks that several models share; the only copy of each."""

from jseg.layers.activation import PReLU, build_activation, gelu, hard_sigmoid, hard_swish, relu
from jseg.layers.conv import Conv2d, ConvNormAct, DepthwiseSeparableConv, conv_norm, pair
from jseg.layers.drop import Dropout, Dropout2d, DropPath
from jseg.layers.inverted_residual import InvertedResidual, make_divisible
from jseg.layers.norms import BatchNorm2d, GroupNorm, LayerNorm, build_norm
from jseg.layers.parameters import buffer_names, count_parameters, named_parameters
from jseg.layers.pool import adaptive_avg_pool, avg_pool, max_pool
from jseg.layers.resize import nearest_resize
from jseg.layers.self_attention import SelfAttentionBlock

__all__ = ["BatchNorm2d", "Conv2d", "ConvNormAct", "DepthwiseSeparableConv", "DropPath", "Dropout", "Dropout2d",
           "GroupNorm", "InvertedResidual", "LayerNorm", "PReLU", "SelfAttentionBlock", "adaptive_avg_pool", "avg_pool",
           "buffer_names", "build_activation", "build_norm", "conv_norm", "count_parameters", "gelu",
           "hard_sigmoid", "hard_swish", "make_divisible", "max_pool", "named_parameters", "nearest_resize",
           "pair", "relu"]

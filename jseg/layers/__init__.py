"""Building blocks that several models share; the only copy of each."""

from jseg.layers.activation import build_activation, gelu, relu
from jseg.layers.conv import Conv2d, ConvNormAct, pair
from jseg.layers.drop import Dropout, Dropout2d, DropPath
from jseg.layers.norms import BatchNorm2d, GroupNorm, LayerNorm, build_norm
from jseg.layers.parameters import buffer_names, count_parameters, named_parameters

__all__ = ["BatchNorm2d", "Conv2d", "ConvNormAct", "DropPath", "Dropout", "Dropout2d", "GroupNorm", "LayerNorm",
           "buffer_names", "build_activation", "build_norm", "count_parameters", "gelu", "named_parameters", "pair", "relu"]

"""jseg's own operations, each with a plain-Jittor path and compiled kernels behind one checked function.

Every folder here with an `op.py` is one operation: `jseg.ops.msca` is the function `msca` of `jseg/ops/msca/op.py`.
A new folder gets its lines below. What a folder holds: see `jseg.ops.common`. `use` chooses the implementation for a
stretch of code.
"""

from jseg.ops.adamw.op import adamw
from jseg.ops.attention.op import attention
from jseg.ops.bilinear_resize.op import bilinear_resize
from jseg.ops.common import takes_cpu_kernels, use, uses_plain
from jseg.ops.conv.op import conv
from jseg.ops.criss_cross.op import criss_cross
from jseg.ops.deformable_attention.op import deformable_attention
from jseg.ops.depthwise.op import depthwise
from jseg.ops.layer_norm.op import layer_norm
from jseg.ops.linear.op import linear
from jseg.ops.mix_ffn.op import mix_ffn
from jseg.ops.msca.op import msca
from jseg.ops.nmf.op import nmf
from jseg.ops.norm.op import norm
from jseg.ops.point_sample.op import point_sample
from jseg.ops.pointwise.fold import Fold, fold_norms, folds_norms
from jseg.ops.pointwise.op import pointwise
from jseg.ops.psa_mask.op import psa_mask
from jseg.ops.readout.op import readout
from jseg.ops.upsample_cross_entropy.op import upsample_cross_entropy

KERNELS = ("adamw", "attention", "bilinear_resize", "conv", "criss_cross", "deformable_attention", "depthwise",
           "layer_norm", "linear", "mix_ffn", "msca", "nmf", "norm", "point_sample", "pointwise", "psa_mask",
           "readout", "upsample_cross_entropy")
__all__ = ["adamw", "attention", "bilinear_resize", "conv", "criss_cross", "deformable_attention", "depthwise",
           "layer_norm", "linear", "mix_ffn", "msca", "nmf", "norm", "point_sample", "pointwise", "psa_mask",
           "readout", "upsample_cross_entropy", "Fold", "KERNELS", "fold_norms", "folds_norms", "takes_cpu_kernels",
           "use", "uses_plain"]

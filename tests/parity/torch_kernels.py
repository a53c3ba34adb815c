"""The operations of jseg.ops written with PyTorch's operators, as a PyTorch user would.
Never imports jseg or Jittor.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim.adamw import adamw

__all__ = ["OperatorTask", "OPERATIONS"]


def _adamw(weights, exp_avg, exp_avg_sq, *, lr, weight_decay, betas, eps, step, **gradients):
    """PyTorch's fused step on a copy: its results must not become the next call's arguments."""
    vectors, starts, start = [v.clone() for v in (weights, exp_avg, exp_avg_sq)], [], 0
    grads = [gradients[f"g{i}"].reshape(-1) for i in range(len(gradients))]
    for grad in grads:
        starts.append(start)
        start += -(-grad.numel() // 16) * 16
    parts = [[v[at:at + g.numel()] for at, g in zip(starts, grads)] for v in vectors]
    steps = [torch.tensor(float(step - 1), device=weights.device) for _ in grads]  # counted up before it is used
    adamw(parts[0], grads, parts[1], parts[2], [], steps, fused=True, amsgrad=False, beta1=betas[0], beta2=betas[1],
          lr=lr, weight_decay=weight_decay, eps=eps, maximize=False)
    return (*vectors, sum((g * g).sum() for g in grads))


def _attention(q, k=None, v=None, bias=None, mask=None, *, scale=None):
    """PyTorch's fused attention; a projection of several parts is taken apart as a view, as its own layers do."""
    if k is None:
        q, k, v = q.unbind(2)
    elif v is None:
        k, v = k.unbind(2)
    n = q.shape[0]
    added = bias if bias is None or bias.dim() == 4 else bias[None]
    if mask is not None:
        full = mask.repeat(n // mask.shape[0], 1, 1)[:, None]
        added = full if added is None else added + full
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale).transpose(1, 2)


def _bilinear_resize(x, add=None, *, size, align_corners=False):
    y = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
    return y if add is None else y + add


def _deformable_attention(value, points, weights, *, sizes):
    """MMCV's way without compiled operators: sample each map, then weigh and add up."""
    n, _, heads, width = value.shape
    found = []
    for i, (part, (h, w)) in enumerate(zip(value.split([h * w for h, w in sizes], 1), sizes)):
        maps = part.permute(0, 2, 3, 1).reshape(n * heads, width, h, w)
        grid = 2 * points[:, :, :, i].transpose(1, 2).flatten(0, 1) - 1  # (N * G, Q, P, 2)
        found.append(F.grid_sample(maps, grid, align_corners=False))  # (N * G, D, Q, P)
    shares = weights.transpose(1, 2).flatten(3).flatten(0, 1).unsqueeze(1)  # (N * G, 1, Q, maps * P)
    return (torch.cat(found, 3) * shares).sum(3).reshape(n, heads, width, -1).permute(0, 3, 1, 2)


def _conv(x, weight, bias=None, scale=None, residual=None, *, stride=1, padding=0, dilation=1, groups=1,
          activation=None, way=None):
    y = F.conv2d(x, weight, None, *(v if isinstance(v, int) else tuple(v) for v in (stride, padding, dilation)), groups)
    y = y if scale is None else y * scale[:, None, None]
    y = y if bias is None else y + bias[:, None, None]
    y = y if residual is None else y + residual
    return F.relu(y) if activation == "relu" else y


def _depthwise(x, weight, bias=None, *, stride, padding, dilation, activation):
    y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups=x.shape[1])
    return F.gelu(y) if activation == "gelu" else y


def _layer_norm(x, weight, bias, *, eps=1e-5):
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def _linear(x, weight, bias=None, factor=None, shortcut=None, *, activation=None):
    y = F.linear(x, weight, bias)
    y = F.gelu(y) if activation == "gelu" else y
    y = y if factor is None else y * factor.reshape(-1, *[1] * (x.dim() - 1))
    return y if shortcut is None else y + shortcut


def _msca(x, w0, b0, **strips):
    c = x.shape[1]
    a = F.conv2d(x, w0, b0, padding=w0.shape[-1] // 2, groups=c)
    y = a
    for i in range(len(strips) // 4):
        row, column, half = strips[f"row{i}"], strips[f"column{i}"], strips[f"row{i}"].shape[-1] // 2
        t = F.conv2d(a, row, strips[f"row_bias{i}"], padding=(0, half), groups=c)
        y = y + F.conv2d(t, column, strips[f"column_bias{i}"], padding=(half, 0), groups=c)
    return y


def _affine(x, scale, shift):
    return x if scale is None else x * scale[:, None, None] + shift[:, None, None]


def _branch(y, scale, factor, shortcut):
    """The end of a residual branch: a scale per channel, a factor per picture, the shortcut."""
    y = y if scale is None else y * scale[:, None, None]
    y = y if factor is None else y * factor[:, None, None, None]
    return y if shortcut is None else y + shortcut


def _pointwise(x, weight, bias=None, gate=None, residual=None, residual_scale=None, scale=None, factor=None,
               shortcut=None, input_scale=None, input_shift=None, *, activation=None):
    y = F.conv2d(_affine(x, input_scale, input_shift), weight, bias)
    y = F.gelu(y) if activation == "gelu" else y
    y = y if gate is None else y * gate
    if residual is not None:
        y = y + (residual if residual_scale is None else residual * residual_scale[:, None, None])
    return _branch(y, scale, factor, shortcut)


def _mix_ffn(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b, scale=None, factor=None, shortcut=None, input_scale=None,
             input_shift=None):
    y = F.conv2d(_affine(x, input_scale, input_shift), fc1_w, fc1_b)
    y = F.conv2d(y, dw_w, dw_b, padding=1, groups=dw_w.shape[0])
    return _branch(F.conv2d(F.gelu(y), fc2_w, fc2_b), scale, factor, shortcut)


def _norm(x, weight, bias, residual=None, *, over, groups=1, activation=None):
    if over == "batch":
        y = F.batch_norm(x, None, None, weight, bias, training=True)
    elif over == "group":
        y = F.group_norm(x, groups, weight, bias)
    else:
        y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias).permute(0, 3, 1, 2)
    y = y if residual is None else y + residual
    return {None: lambda v: v, "relu": F.relu, "gelu": F.gelu}[activation](y)


def _criss_cross(query, key, value):
    h = query.shape[2]
    down = torch.einsum("nchw,nciw->nhwi", query, key)
    down = down.masked_fill(torch.eye(h, dtype=torch.bool, device=query.device)[:, None], float("-inf"))
    weights = torch.cat([down, torch.einsum("nchw,nchj->nhwj", query, key)], 3).softmax(3)
    return (torch.einsum("nhwi,ndiw->ndhw", weights[..., :h], value)
            + torch.einsum("nhwj,ndhj->ndhw", weights[..., h:], value))


def _psa_mask(x, *, mask_size, kind):
    """MMCV's compiled operator where it is installed, otherwise a gather."""
    try:
        from mmcv.ops.psa_mask import psa_mask
    except ImportError:
        return _gathered_psa_mask(x, mask_size, kind)
    return psa_mask(x, ("collect", "distribute").index(kind), tuple(mask_size))


def _gathered_psa_mask(x, mask_size, kind):
    n, _, h, w = x.shape
    place = torch.arange(h * w, device=x.device)
    down, right = ((side[:, None] - side + (size - 1) // 2)
                   for side, size in zip((place // w, place % w), mask_size))  # [other position, position]
    inside = (down >= 0) & (down < mask_size[0]) & (right >= 0) & (right < mask_size[1])
    index = torch.where(inside, down * mask_size[1] + right, 0)
    y = x.reshape(n, -1, h * w).gather(1, index.expand(n, -1, -1)) * inside
    return (y if kind == "collect" else y.transpose(1, 2)).reshape(n, h * w, h, w)


def _nmf(x, bases, *, steps, inv_t=1.0, eps=1e-6, grad="full"):
    if grad != "full":
        raise NotImplementedError("the one-step gradient is not written here")
    turned = x.transpose(1, 2)
    coef = F.softmax(inv_t * (turned @ bases), dim=-1)
    for i in range(steps + 1):
        coef = coef * (turned @ bases) / (coef @ (bases.transpose(1, 2) @ bases) + eps)
        if i < steps:
            bases = bases * (x @ coef) / (bases @ (coef.transpose(1, 2) @ coef) + eps)
    return bases @ coef.transpose(1, 2)


def _point_sample(x, points, *, mode="bilinear", align_corners=False):
    return F.grid_sample(x, 2 * points[:, :, None] - 1, mode=mode, align_corners=align_corners)[..., 0]


def _readout(logits, *, size, through=None, align_corners=False, with_prob=False):
    if through is not None:
        logits = F.interpolate(logits, size=tuple(through), mode="bilinear", align_corners=align_corners)
    full = F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)
    if not with_prob:
        return full.argmax(1)
    prob, labels = F.softmax(full, 1).max(1)
    return labels, prob


def _upsample_cross_entropy(logits, labels, class_weight=None, pixel_weight=None, *, align_corners=False,
                            ignore_index=255, avg_non_ignore=False, reduction="mean"):
    if class_weight is not None or pixel_weight is not None:
        raise NotImplementedError("weighted losses are not written here")
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=align_corners)
    labels = labels.long()
    losses = F.cross_entropy(full, labels, ignore_index=ignore_index, reduction="none")
    valid = labels != ignore_index
    accuracy = ((full.argmax(1) == labels) & valid).sum() * 100.0 / valid.sum()
    if reduction == "none":
        return losses, accuracy
    return losses.sum() / (valid.sum() if avg_non_ignore else labels.numel()), accuracy


OPERATIONS = {"adamw": _adamw, "attention": _attention, "bilinear_resize": _bilinear_resize,
              "conv": _conv, "criss_cross": _criss_cross, "deformable_attention": _deformable_attention,
              "depthwise": _depthwise,
              "layer_norm": _layer_norm, "linear": _linear,
              "msca": _msca, "pointwise": _pointwise, "mix_ffn": _mix_ffn, "nmf": _nmf, "norm": _norm,
              "point_sample": _point_sample, "psa_mask": _psa_mask, "readout": _readout,
              "upsample_cross_entropy": _upsample_cross_entropy}


class OperatorTask:
    """One kernel on the arguments jseg's side wrote; calling it runs it and waits.

    Args:
        request: kernel, inputs (path), options, names of the inputs to differentiate, device.
    Raises:
        NotImplementedError: the operation is not written here.
    """

    def __init__(self, request: dict):
        if request["kernel"] not in OPERATIONS:
            raise NotImplementedError(f"{request['kernel']} is not written with PyTorch's operators")
        self.operation, self.options = OPERATIONS[request["kernel"]], request["options"]
        self.device = request.get("device", "cpu")
        arrays = dict(np.load(request["inputs"]))
        self.dout = torch.from_numpy(arrays.pop("dout/")).to(self.device)
        self.names = request["names"]
        self.tensors = {name: torch.from_numpy(value).to(self.device) for name, value in arrays.items()}
        for name in self.names:
            self.tensors[name].requires_grad_(True)

    def _run(self) -> list:
        with torch.set_grad_enabled(bool(self.names)):
            outs = self.operation(**self.tensors, **self.options)
        outs = list(outs) if isinstance(outs, tuple) else [outs]
        grads = (torch.autograd.grad(outs[0], [self.tensors[n] for n in self.names], self.dout.reshape(outs[0].shape))
                 if self.names else [])
        if self.device == "cuda":
            torch.cuda.synchronize()
        return outs + list(grads)

    def __call__(self) -> None:
        self._run()

    def results(self) -> dict[str, np.ndarray]:
        """out0, out1... and d<input> for each gradient."""
        values = [value.detach().cpu().numpy() for value in self._run()]
        count = len(values) - len(self.names)
        return {**{f"out{i}": v for i, v in enumerate(values[:count])},
                **{f"d{n}": v for n, v in zip(self.names, values[count:])}}

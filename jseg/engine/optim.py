"""Adam, AdamW, SGD, gradient clipping, accumulation and the moving average of weights, on flat vectors.

Up to 48 parameters of one rate and decay share a vector: a step is then a handful of kernels whatever the number of
parameters (per-tensor updates would compile and launch hundreds), and across ranks one all-reduce. After a step each
parameter becomes a view into its group's vector, aligned to 64 bytes for the vector units. Gradients stay where the
backward pass left them until something needs them in one vector: a second micro-batch, clipping, other ranks.

Numbers follow PyTorch (`torch/optim/adamw.py`, `sgd.py`, `nn/utils/clip_grad.py`), group building follows MMEngine's
`DefaultOptimWrapperConstructor`, the moving average its `ExponentialMovingAverage`. Deviation: a parameter that the
loss does not reach has gradient zero here (it still decays); PyTorch skips it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jittor as jt
import numpy as np

from jseg.engine import distributed, layer_decay
from jseg.errors import ConfigError
from jseg.layers import Conv2d, buffer_names
from jseg.layers.norms import NORMS
from jseg.ops import adamw
from jseg.ops.adamw.op import ALIGN, MOST_GRADIENTS, pack, sum_of_squares
from jseg.registry import OPTIMIZERS, accepted
from jseg.rules import FACTOR, MAPPING, fields

__all__ = ["ParamGroup", "param_groups", "Optimizer", "Adam", "AdamW", "SGD", "EMA", "build_optimizer",
           "paramwise_faults"]

_PARAMWISE = {**layer_decay.RULES, "custom_keys": MAPPING, "backbone_lr_mult": FACTOR, "bias_lr_mult": FACTOR,
              "bias_decay_mult": FACTOR,
              "norm_decay_mult": FACTOR, "dwconv_decay_mult": FACTOR, "flat_decay_mult": FACTOR}
_MULTIPLIERS = {"lr_mult": FACTOR, "decay_mult": FACTOR}


@dataclass
class ParamGroup:
    """At most 48 parameters that share a rate, a decay and a vector.

    `lr` and `weight_decay` are the values at the start of the run; `offsets[i]` is where parameter i begins in the
    vector; `part` is "backbone" or "others" where groups are of one part.
    """

    lr: float
    weight_decay: float
    names: list[str] = field(default_factory=list)
    params: list[jt.Var] = field(default_factory=list)
    part: str | None = None

    def __post_init__(self):
        self.offsets, self.size = [], 0

    def lay_out(self) -> None:
        """Give each parameter its place in the vector."""
        self.offsets, self.size = [], 0
        for param in self.params:
            self.offsets.append(self.size)
            self.size += -(-param.numel() // ALIGN) * ALIGN

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Copy arrays of the parameters' shapes into one vector, zero between them."""
        flat = np.zeros(self.size, np.float32)
        for array, offset in zip(arrays, self.offsets):
            flat[offset:offset + array.size] = array.reshape(-1)
        return flat

    def unpack(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The inverse of `pack`: one array per parameter name."""
        return {name: flat[o:o + p.numel()].reshape(tuple(p.shape)).copy()
                for name, p, o in zip(self.names, self.params, self.offsets)}


def param_groups(model, *, lr: float, weight_decay: float = 0.0, paramwise_cfg: dict | None = None,
                 by_part: bool = False) -> list[ParamGroup]:
    """Sort a model's trainable parameters into groups of equal rate and decay; a full group is followed by another.

    Args:
        model: a jt.nn.Module.
        lr, weight_decay: base values that the multipliers act on.
        paramwise_cfg: MMEngine's block. `custom_keys: {part_of_name: {lr_mult, decay_mult}}`: the longest key found in
            a parameter's name decides alone; otherwise bias_lr_mult, bias_decay_mult, norm_decay_mult,
            dwconv_decay_mult and flat_decay_mult (one-dimensional parameters) apply. Or
            `{num_layers, decay_rate, decay_type}`, see `layer_decay`. Not MMEngine's: `backbone_lr_mult` and
            `{decay_rate, decay_type: in_order}` multiply the backbone's rates that the other keys give.
        by_part: no group holds parameters of the backbone and others.
    Raises:
        ConfigError: an unknown key, a value that is no factor, or a model without trainable parameters.
    """
    rules = dict(paramwise_cfg or {})
    faults = paramwise_faults(rules)
    if faults:
        raise ConfigError("\n".join(faults))
    modules = dict(model.named_modules())
    by_depth = layer_decay.layer_decay(model, rules) if layer_decay.decides_alone(rules) else None
    scale = layer_decay.backbone_scale(model, rules)
    groups: list[ParamGroup] = []
    open_groups: dict[tuple, ParamGroup] = {}
    for name, param in model.named_parameters():
        if param.is_stop_grad():
            continue
        owner = modules.get(name.rpartition(".")[0])
        lr_mult, decay_mult = by_depth(name, param) if by_depth else _multipliers(name, param, owner, rules)
        part = ("backbone" if name.startswith("backbone.") else "others") if by_part else None
        key = (lr * lr_mult * scale(name), weight_decay * decay_mult, part)
        group = open_groups.get(key)
        if group is None or len(group.params) == MOST_GRADIENTS:
            group = open_groups[key] = ParamGroup(lr=key[0], weight_decay=key[1], part=part)
            groups.append(group)
        group.names.append(name)
        group.params.append(param)
    if not groups:
        raise ConfigError("optimizer: the model has no trainable parameter")
    for group in groups:
        group.lay_out()
    return groups


def paramwise_faults(cfg: Mapping) -> list[str]:
    """List what is wrong with a `paramwise_cfg`; empty when nothing is."""
    faults = fields(cfg, _PARAMWISE, "paramwise_cfg", "paramwise_cfg")
    keys = cfg.get("custom_keys")
    for name, multipliers in (keys if isinstance(keys, Mapping) else {}).items():
        where = f"paramwise_cfg.custom_keys.{name}"
        if isinstance(multipliers, Mapping):
            faults += fields(multipliers, _MULTIPLIERS, where, "a parameter group")
        else:
            faults.append(f"{where}: got {multipliers!r}, expected lr_mult and/or decay_mult")
    if not faults:
        faults += layer_decay.layer_decay_faults(cfg)
    return faults


def _multipliers(name: str, param: jt.Var, module, rules: dict) -> tuple[float, float]:
    """(lr_mult, decay_mult) of one parameter."""
    custom = rules.get("custom_keys") or {}
    for key in sorted(sorted(custom), key=len, reverse=True):
        if key in (name if "." in name else f".{name}"):
            options = custom[key]
            return options.get("lr_mult", 1.0), options.get("decay_mult", 1.0)
    is_bias, is_norm = name.rpartition(".")[2] == "bias", isinstance(module, NORMS)
    is_depthwise = isinstance(module, Conv2d) and module.in_channels == module.groups
    lr_mult = rules.get("bias_lr_mult") if is_bias and not is_norm else None
    for applies, key in ((is_norm, "norm_decay_mult"), (is_bias, "bias_decay_mult"),
                         (is_depthwise, "dwconv_decay_mult"), (len(param.shape) == 1, "flat_decay_mult")):
        if applies and rules.get(key) is not None:
            return 1.0 if lr_mult is None else lr_mult, rules[key]
    return 1.0 if lr_mult is None else lr_mult, 1.0


class Optimizer:
    """Gradients in, new weights out; subclasses say how one group's vectors change.

    `accumulate(loss)` adds a micro-batch's gradient; `step(lrs)` uses and forgets the sum.

    Args:
        groups: from `param_groups`. The parameters' values are copied: build the optimizer after loading weights.
    """

    slots: tuple[str, ...] = ()  # names of the state vectors, zero at the start

    def __init__(self, groups: Sequence[ParamGroup]):
        self.groups = list(groups)
        self.steps = 0
        self.weights = [_var(g.pack([p.numpy() for p in g.params])) for g in self.groups]
        self.state = {slot: [_var(np.zeros(g.size, np.float32)) for g in self.groups] for slot in self.slots}
        self._grads: list[list[jt.Var]] | None = None  # of each group: one for each parameter, or all packed
        self.put(self.weights)

    @property
    def lrs(self) -> list[float]:
        """Rates of the groups at the start of the run."""
        return [group.lr for group in self.groups]

    @property
    def parts(self) -> list[str | None]:
        """What the groups are parts of, see `ParamGroup`."""
        return [group.part for group in self.groups]

    def put(self, weights: Sequence[jt.Var]) -> None:
        """Make the model's parameters views of these vectors (the optimizer's own, or an average to evaluate)."""
        for group, flat in zip(self.groups, weights):
            for param, offset in zip(group.params, group.offsets):
                shape = param.shape
                param.update(flat[offset:offset + param.numel()].reshape(shape))

    def accumulate(self, loss: jt.Var) -> None:
        """Add the gradient of `loss` (a scalar, already divided by the number of micro-batches) to the sum."""
        grads = iter(jt.grad(loss, [p for g in self.groups for p in g.params]))
        fresh = [[_float32(next(grads)) for _ in group.params] for group in self.groups]
        if self._grads is None:
            self._grads = fresh
        else:
            self._grads = [[total + pack(more, group.size)]
                           for total, more, group in zip(self._packed(), fresh, self.groups)]

    def _packed(self) -> list[jt.Var]:
        """The accumulated gradient of each group as one vector, and so from here on."""
        for i, (grads, group) in enumerate(zip(self._grads, self.groups)):
            if grads[0].shape != [group.size]:
                self._grads[i] = [pack(grads, group.size)]
        return [grads[0] for grads in self._grads]

    @property
    def is_open(self) -> bool:
        """Whether a sum of gradients is waiting for its step."""
        return self._grads is not None

    def squares(self) -> jt.Var:
        """Sum of the squares of all accumulated gradients."""
        return sum(map(sum_of_squares, self._packed()))

    def share(self, numbers: jt.Var) -> jt.Var:
        """Add up the accumulated gradients of all ranks, in one message that also carries `numbers`, a float32 vector.

        Returns:
            the sum of `numbers`.
        """
        total, start = distributed.exchange(jt.concat([*self._packed(), numbers])), 0
        for i, group in enumerate(self.groups):
            self._grads[i] = [total[start:start + group.size].stop_grad()]
            start += group.size
        return total[start:]

    def step(self, lrs: Sequence[float], *, max_norm: float | None = None) -> jt.Var:
        """Update every parameter and forget the accumulated gradient.

        Args:
            lrs: one rate per group.
            max_norm: scale the gradient down to this L2 norm when it is longer, as torch's clip_grad_norm_; > 0.
        Returns:
            the norm of the gradient before clipping, a scalar.
        """
        self.steps += 1
        norm = None
        if max_norm is not None:
            norm = jt.sqrt(self.squares())
            shrink = jt.minimum(max_norm / (norm + 1e-6), 1.0)
            self._grads = [[grad * shrink] for grad in self._packed()]
        squares = [self._update(i, grads, lr, group.weight_decay)
                   for i, (grads, lr, group) in enumerate(zip(self._grads, lrs, self.groups))]
        self._grads = None
        self.put(self.weights)
        return jt.sqrt(sum(squares)) if norm is None else norm

    def _update(self, i: int, grads: list[jt.Var], lr: float, weight_decay: float) -> jt.Var:
        """Advance group i; `grads` is one for each parameter, or all packed. Returns the sum of their squares."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """State vectors cut by parameter: `<slot>.<parameter>` float32; `grad.<parameter>` when a sum is open.

        An open sum is that over all ranks, so every rank must call this then.
        """
        vectors = dict(self.state)
        if self._grads is not None:
            vectors["grad"] = [jt.array(sum(distributed.gather(flat.numpy()))) for flat in self._packed()]
        return {f"{slot}.{name}": array for slot, flats in vectors.items() for group, flat in zip(self.groups, flats)
                for name, array in group.unpack(flat.numpy()).items()}

    def load_state_dict(self, state: dict[str, np.ndarray], steps: int) -> None:
        """Take the model's present weights, these state arrays and this number of past steps.

        Raises:
            KeyError: an array is missing.
        """
        self.steps = steps
        for i, group in enumerate(self.groups):
            self.weights[i] = _var(group.pack([p.numpy() for p in group.params]))
            for slot in self.slots:
                self.state[slot][i] = _var(group.pack([state[f"{slot}.{name}"] for name in group.names]))
        if distributed.is_main() and any(key.startswith("grad.") for key in state):  # the sum of all ranks counts once
            self._grads = [[_var(g.pack([state[f"grad.{name}"] for name in g.names]))] for g in self.groups]
        self.put(self.weights)


@OPTIMIZERS.register()
class AdamW(Optimizer):
    """Adam with decoupled weight decay (ICLR 2019), the numbers of torch.optim.AdamW.

    Args:
        groups: from `param_groups`.
        lr: base rate, >= 0 (already in the groups; kept for the config's sake).
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, > 0.
        weight_decay: base decay (already in the groups).
    Raises:
        ValueError: a number is out of range.
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(self, groups: Sequence[ParamGroup], *, lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.01):
        if len(betas) != 2 or not all(0.0 <= b < 1.0 for b in betas) or eps <= 0 or lr < 0 or weight_decay < 0:
            raise ValueError(f"needs lr >= 0, two betas in [0, 1), eps > 0, weight_decay >= 0; got lr={lr}, "
                             f"betas={betas}, eps={eps}, weight_decay={weight_decay}")
        super().__init__(groups)
        self.betas, self.eps = tuple(betas), eps

    def _update(self, i: int, grads: list[jt.Var], lr: float, weight_decay: float) -> jt.Var:
        vectors = self.weights[i], self.state["exp_avg"][i], self.state["exp_avg_sq"][i]
        *results, squares = adamw(*vectors, grads, lr=lr, weight_decay=weight_decay, betas=self.betas, eps=self.eps,
                                  step=self.steps)
        for vector, result in zip(vectors, results):
            vector.update(result)
        return squares


@OPTIMIZERS.register()
class Adam(AdamW):
    """Adam (ICLR 2015), whose weight decay is a part of the gradient, the numbers of torch.optim.Adam.

    Args, raises: as `AdamW`, but without weight decay unless one is named.
    """

    def __init__(self, groups: Sequence[ParamGroup], *, lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, i: int, grads: list[jt.Var], lr: float, weight_decay: float) -> jt.Var:
        packed, (decay,) = self._packed()[i], _scalars(weight_decay)
        super()._update(i, [packed + decay * self.weights[i]], lr, 0.0)
        return sum_of_squares(packed)


@OPTIMIZERS.register()
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, the numbers of torch.optim.SGD.

    Args:
        groups: from `param_groups`.
        lr, weight_decay: base values (already in the groups).
        momentum: 0 to below 1; 0 keeps no state.
        dampening: share of the gradient left out of the momentum, 0 to 1.
        nesterov: look ahead along the momentum; needs momentum > 0 and dampening 0.
    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, groups: Sequence[ParamGroup], *, lr: float = 1e-2, momentum: float = 0.0, dampening: float = 0.0,
                 weight_decay: float = 0.0, nesterov: bool = False):
        if not 0.0 <= momentum < 1.0 or lr < 0 or weight_decay < 0 or not 0.0 <= dampening <= 1.0:
            raise ValueError(f"needs lr >= 0, 0 <= momentum < 1, 0 <= dampening <= 1, weight_decay >= 0; got lr={lr}, "
                             f"momentum={momentum}, dampening={dampening}, weight_decay={weight_decay}")
        if nesterov and (momentum == 0.0 or dampening != 0.0):
            raise ValueError("nesterov needs momentum > 0 and dampening 0")
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self.slots = ("momentum_buffer",) if momentum else ()
        super().__init__(groups)

    def _update(self, i: int, grads: list[jt.Var], lr: float, weight_decay: float) -> jt.Var:
        w, packed = self.weights[i], self._packed()[i]
        decay, rate, share = _scalars(weight_decay, lr, 1.0 if self.steps == 1 else 1 - self.dampening)
        grad = packed + decay * w
        if self.momentum:
            buffer = self.state["momentum_buffer"][i]
            buffer.update(buffer * self.momentum + grad * share)  # the first step takes the gradient whole
            grad = grad + buffer * self.momentum if self.nesterov else buffer
        w.update(w - rate * grad)
        return sum_of_squares(packed)


class EMA:
    """Exponential moving average of the weights: `average += (1 - decay) * (weights - average)` after every iteration.

    The first update copies the weights, as MMEngine does.

    Args:
        optimizer: its weight vectors are followed.
        decay: 0 to below 1, usually 0.999 or more.
        buffers: name -> Var of running statistics that are averaged too, as timm does; by default none are.
    Raises:
        ValueError: decay out of range.
    """

    def __init__(self, optimizer: Optimizer, *, decay: float = 0.9998, buffers: Mapping[str, jt.Var] | None = None):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"train_cfg.ema: needs 0 <= decay < 1, got {decay}")
        self.optimizer, self.decay, self.updates = optimizer, decay, 0
        self.weights = [_var(np.zeros(g.size, np.float32)) for g in optimizer.groups]
        self.buffers = dict(buffers or {})
        self.statistics = _var(np.zeros(max(1, sum(var.numel() for var in self.buffers.values())), np.float32))

    @classmethod
    def of(cls, cfg, optimizer: Optimizer, model) -> EMA:
        """The average that a `train_cfg.ema` asks for: of the parameters, with `update_buffers` of the statistics."""
        state = model.state_dict() if cfg.update_buffers else {}
        names = [name for name in state if name in buffer_names(model) and state[name].dtype == "float32"]
        return cls(optimizer, decay=cfg.decay, buffers={name: state[name] for name in names})

    def update(self) -> None:
        """Follow the optimizer's present weights by one step."""
        share, = _scalars(1.0 if self.updates == 0 else 1 - self.decay)
        for average, weights in zip(self.weights, self.optimizer.weights):
            average.update(average + (weights - average) * share)
        if self.buffers:
            present = list(self.buffers.values())
            jt.sync(present)  # by kernels of their own: fused with these they would round as the graph happens to be
            flat = jt.concat([var.reshape((-1,)) for var in present])
            self.statistics.update(self.statistics + (flat - self.statistics) * share)
        self.updates += 1

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model holds the average."""
        held = {name: np.array(var.numpy()) for name, var in self.buffers.items()}
        self.optimizer.put(self.weights)
        for name, value in self._averaged_buffers().items():
            self.buffers[name].update(_var(value))
        try:
            yield
        finally:
            self.optimizer.put(self.optimizer.weights)
            for name, var in self.buffers.items():
                var.update(_var(held[name]))
            jt.sync_all(True)

    def state_dict(self) -> dict[str, np.ndarray]:
        """`ema.<parameter>` and `ema.<statistic>` float32 arrays."""
        found = {f"ema.{name}": array for group, flat in zip(self.optimizer.groups, self.weights)
                 for name, array in group.unpack(flat.numpy()).items()}
        return {**found, **{f"ema.{name}": value for name, value in self._averaged_buffers().items()}}

    def _averaged_buffers(self) -> dict[str, np.ndarray]:
        """Copies of the averages of the running statistics."""
        flat, start, found = self.statistics.numpy(), 0, {}
        for name, var in self.buffers.items():
            found[name] = np.array(flat[start:start + var.numel()]).reshape(tuple(var.shape))
            start += var.numel()
        return found

    def load_state_dict(self, state: dict[str, np.ndarray], updates: int) -> None:
        """Take these averages and this number of past updates; KeyError when one is missing."""
        self.updates = updates
        self.weights = [_var(g.pack([state[f"ema.{name}"] for name in g.names])) for g in self.optimizer.groups]
        if self.buffers:
            self.statistics = _var(np.concatenate([state[f"ema.{name}"].reshape(-1) for name in self.buffers]))


def build_optimizer(model, optimizer_cfg: dict, paramwise_cfg: dict | None = None, *,
                    by_part: bool = False) -> Optimizer:
    """Build what `optimizer:` names over the model's trainable parameters; `by_part`: see `param_groups`.

    Raises:
        ConfigError: unknown type or argument, or a number out of range.
    """
    faults = OPTIMIZERS.faults(optimizer_cfg, "optimizer", given=("groups",))
    if faults:
        raise ConfigError("\n".join(faults))
    words = accepted(OPTIMIZERS.get(optimizer_cfg["type"], "optimizer"))
    lr, decay = (optimizer_cfg.get(key, words[key].default) for key in ("lr", "weight_decay"))
    groups = param_groups(model, lr=lr, weight_decay=decay, paramwise_cfg=paramwise_cfg, by_part=by_part)
    return OPTIMIZERS.build(optimizer_cfg, where="optimizer", groups=groups)


def _float32(grad: jt.Var) -> jt.Var:
    return (grad if grad.dtype == "float32" else grad.float32()).stop_grad()


def _var(array: np.ndarray) -> jt.Var:
    return jt.array(array).stop_grad()


def _scalars(*values: float) -> list[jt.Var]:
    """Numbers that change from step to step, as inputs rather than as constants in a kernel's source."""
    return [jt.array(np.array([value], np.float32)) for value in values]

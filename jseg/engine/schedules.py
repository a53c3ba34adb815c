"""Learning-rate schedules: a pure function from the iteration number to the rates of all parameter groups.

The arguments, their defaults and the numbers are those of MMEngine 0.10 (`mmengine/optim/scheduler/param_scheduler.py`,
Apache-2.0). As there, a schedule works on the rate that is current when its turn comes, in steps counted from `begin`,
so a list of schedules composes by `[begin, end)`. `LearningRate` replays the recursion from iteration 0, therefore a
resumed run gets exactly the numbers of an unbroken one and nothing has to be stored. Not MMEngine's: a block with
`part: backbone` or `part: others` changes the rates of these parameters alone.

Deviations: `end` defaults to the length of the run instead of 10**9; LinearLR refuses `start_factor: 0`, which divides
by zero upstream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jseg.errors import ConfigError
from jseg.registry import SCHEDULES

__all__ = ["Schedule", "LinearLR", "ConstantLR", "PolyLR", "CosineAnnealingLR", "StepLR", "MultiStepLR", "LearningRate",
           "build_schedules", "part_of"]

PARTS = ("backbone", "others")


class Schedule:
    """One rule that changes the learning rate within `[begin, end)`.

    Args:
        begin: first step at which the rule acts, >= 0.
        end: step at which it stops acting, > begin; None means the end of the run.
        by_epoch: count `begin`, `end` and the rule's own lengths in epochs instead of iterations.
        convert_to_iter_based: with `by_epoch`, turn the lengths into iterations, so that the rate changes at every one.
    Raises:
        ValueError: an argument is out of range.
    """

    part: str | None = None  # of `PARTS`; None: all parameters

    def __init__(self, *, begin: int = 0, end: int | None = None, by_epoch: bool = True,
                 convert_to_iter_based: bool = False):
        if begin < 0 or (end is not None and end <= begin):
            raise ValueError(f"needs 0 <= begin < end, got begin={begin}, end={end}")
        if convert_to_iter_based and not by_epoch:
            raise ValueError("convert_to_iter_based needs by_epoch: true")
        self.begin, self.end, self.by_epoch = begin, end, by_epoch
        self.convert_to_iter_based = convert_to_iter_based

    def prepare(self, max_iters: int, epoch_length: int) -> None:
        """Fill in an open `end` and turn epochs into iterations where that was asked for (both counts >= 1)."""
        if self.end is None:
            self.end = math.ceil(max_iters / epoch_length) if self.by_epoch else max_iters
            self.end = max(self.end, self.begin + 1)
        if self.convert_to_iter_based:
            self.begin, self.end = int(self.begin * epoch_length), int(self.end * epoch_length)
            self._scale(epoch_length)
            self.by_epoch = False

    def _scale(self, epoch_length: int) -> None:
        """Turn the rule's own lengths from epochs into iterations."""

    def change(self, value: float, base: float, step: int) -> float:
        """The rate after `value`; `step` counts from 0 at `begin`, `base` is the rate the config names."""
        raise NotImplementedError


@SCHEDULES.register()
class LinearLR(Schedule):
    """Warm-up: the factor on the rate grows linearly from `start_factor` at `begin` to `end_factor` at `end - 1`.

    Args:
        start_factor: 0 < start_factor <= 1.
        end_factor: 0 to 1.
        begin, end, by_epoch, convert_to_iter_based: see `Schedule`.
    """

    def __init__(self, *, start_factor: float = 1.0 / 3, end_factor: float = 1.0, begin: int = 0,
                 end: int | None = None, by_epoch: bool = True, convert_to_iter_based: bool = False):
        super().__init__(begin=begin, end=end, by_epoch=by_epoch, convert_to_iter_based=convert_to_iter_based)
        if not 0.0 < start_factor <= 1.0 or not 0.0 <= end_factor <= 1.0:
            raise ValueError(f"needs 0 < start_factor <= 1 and 0 <= end_factor <= 1, got {start_factor} and "
                             f"{end_factor}")
        self.start_factor, self.end_factor = start_factor, end_factor

    def change(self, value: float, base: float, step: int) -> float:
        """See `Schedule.change`."""
        if step == 0:
            return value * self.start_factor
        rise, length = self.end_factor - self.start_factor, self.end - self.begin - 1
        return value * (1.0 + rise / (length * self.start_factor + (step - 1) * rise))


@SCHEDULES.register()
class ConstantLR(Schedule):
    """Multiply the rate by `factor` (0 < factor <= 1) from `begin` until `end - 1`."""

    def __init__(self, *, factor: float = 1.0 / 3, begin: int = 0, end: int | None = None, by_epoch: bool = True,
                 convert_to_iter_based: bool = False):
        super().__init__(begin=begin, end=end, by_epoch=by_epoch, convert_to_iter_based=convert_to_iter_based)
        if not 0.0 < factor <= 1.0:
            raise ValueError(f"needs 0 < factor <= 1, got {factor}")
        self.factor = factor

    def change(self, value: float, base: float, step: int) -> float:
        """See `Schedule.change`."""
        if step == 0:
            return value * self.factor
        return value * (1.0 / self.factor) if step == self.end - self.begin - 1 else value


@SCHEDULES.register()
class PolyLR(Schedule):
    """Fall to `eta_min` as `(1 - step / length) ** power`, starting from the rate current at `begin`.

    Args:
        power: exponent, > 0.
        eta_min: rate at `end - 1`, >= 0; the same for every parameter group.
        begin, end, by_epoch, convert_to_iter_based: see `Schedule`.
    """

    def __init__(self, *, power: float = 1.0, eta_min: float = 0.0, begin: int = 0, end: int | None = None,
                 by_epoch: bool = True, convert_to_iter_based: bool = False):
        super().__init__(begin=begin, end=end, by_epoch=by_epoch, convert_to_iter_based=convert_to_iter_based)
        if power <= 0 or eta_min < 0:
            raise ValueError(f"needs power > 0 and eta_min >= 0, got {power} and {eta_min}")
        self.power, self.eta_min = power, eta_min

    def change(self, value: float, base: float, step: int) -> float:
        """See `Schedule.change`."""
        if step == 0:
            return value
        left = self.end - self.begin - step  # steps to go, the present one included
        return (value - self.eta_min) * (1.0 - 1.0 / left) ** self.power + self.eta_min


@SCHEDULES.register()
class CosineAnnealingLR(Schedule):
    """Fall to `eta_min` along half a cosine of `T_max` steps (SGDR, ICLR 2017, without restarts).

    Args:
        T_max: steps of the half cosine, >= 1; None means `end - begin`.
        eta_min: lowest rate, >= 0.
        eta_min_ratio: lowest rate as a share of the group's own rate; excludes `eta_min`.
        begin, end, by_epoch, convert_to_iter_based: see `Schedule`.
    """

    def __init__(self, *, T_max: int | None = None, eta_min: float | None = None, eta_min_ratio: float | None = None,
                 begin: int = 0, end: int | None = None, by_epoch: bool = True, convert_to_iter_based: bool = False):
        super().__init__(begin=begin, end=end, by_epoch=by_epoch, convert_to_iter_based=convert_to_iter_based)
        if eta_min is not None and eta_min_ratio is not None:
            raise ValueError("takes eta_min or eta_min_ratio, not both")
        if T_max is not None and T_max < 1:
            raise ValueError(f"needs T_max >= 1, got {T_max}")
        self.T_max, self.eta_min, self.eta_min_ratio = T_max, eta_min or 0.0, eta_min_ratio

    def _scale(self, epoch_length: int) -> None:
        if self.T_max is not None:
            self.T_max *= epoch_length

    def change(self, value: float, base: float, step: int) -> float:
        """See `Schedule.change`."""
        length = self.T_max or (self.end - self.begin)
        lowest = self.eta_min if self.eta_min_ratio is None else base * self.eta_min_ratio
        if step == 0:
            return value
        if (step - 1 - length) % (2 * length) == 0:  # the rate has just touched bottom: the ratio below is 0 / 0
            return value + (base - lowest) * (1 - math.cos(math.pi / length)) / 2
        ratio = (1 + math.cos(math.pi * step / length)) / (1 + math.cos(math.pi * (step - 1) / length))
        return ratio * (value - lowest) + lowest


@SCHEDULES.register()
class StepLR(Schedule):
    """Multiply the rate by `gamma` every `step_size` steps."""

    def __init__(self, *, step_size: int, gamma: float = 0.1, begin: int = 0, end: int | None = None,
                 by_epoch: bool = True, convert_to_iter_based: bool = False):
        super().__init__(begin=begin, end=end, by_epoch=by_epoch, convert_to_iter_based=convert_to_iter_based)
        if step_size < 1:
            raise ValueError(f"needs step_size >= 1, got {step_size}")
        self.step_size, self.gamma = step_size, gamma

    def _scale(self, epoch_length: int) -> None:
        self.step_size *= epoch_length

    def change(self, value: float, base: float, step: int) -> float:
        """See `Schedule.change`."""
        return value * self.gamma if step > 0 and step % self.step_size == 0 else value


@SCHEDULES.register()
class MultiStepLR(Schedule):
    """Multiply the rate by `gamma` at each of `milestones`, counted from `begin`; one named twice counts twice."""

    def __init__(self, *, milestones: Sequence[int], gamma: float = 0.1, begin: int = 0, end: int | None = None,
                 by_epoch: bool = True, convert_to_iter_based: bool = False):
        super().__init__(begin=begin, end=end, by_epoch=by_epoch, convert_to_iter_based=convert_to_iter_based)
        self.milestones, self.gamma = list(milestones), gamma

    def _scale(self, epoch_length: int) -> None:
        self.milestones = [m * epoch_length for m in self.milestones]

    def change(self, value: float, base: float, step: int) -> float:
        """See `Schedule.change`."""
        return value * self.gamma ** self.milestones.count(step)


def build_schedules(cfg: Sequence | dict | None, where: str = "param_scheduler") -> list[Schedule]:
    """Build the list under `param_scheduler`; None or an empty list keeps the rate constant.

    Raises:
        ConfigError: naming the entry that is wrong.
    """
    schedules = []
    for i, block in enumerate([cfg] if isinstance(cfg, dict) else list(cfg or [])):
        block, part = part_of(block, f"{where}[{i}]")
        schedules.append(SCHEDULES.build(block, where=f"{where}[{i}]"))
        schedules[-1].part = part
    return schedules


def part_of(block: Mapping, where: str) -> tuple[dict, str | None]:
    """(a block without its `part`, the part).

    Raises:
        ConfigError: there is no such part.
    """
    words = dict(block)
    part = words.pop("part", None)
    if part not in (None, *PARTS):
        raise ConfigError(f"{where}.part: got {part!r}, expected {' or '.join(PARTS)}, or nothing for all parameters")
    return words, part


class LearningRate:
    """The rates of all groups at any iteration.

    Args:
        schedules: rules in the order in which they act.
        base: one rate per group, as the config names it.
        max_iters: length of the run in iterations.
        epoch_length: iterations in an epoch.
        parts: of `PARTS`, or None, for each group; rates beyond the groups are of the others.
    Raises:
        ConfigError: a length is below 1.
    """

    def __init__(self, schedules: Sequence[Schedule], base: Sequence[float], max_iters: int, epoch_length: int,
                 parts: Sequence[str | None] = ()):
        if max_iters < 1 or epoch_length < 1:
            raise ConfigError(f"train_cfg: needs at least one iteration, got max_iters={max_iters}, "
                              f"epoch={epoch_length}")
        self.schedules, self.base, self.epoch_length = list(schedules), list(base), epoch_length
        self.parts = [*parts, *[PARTS[1]] * (len(self.base) - len(parts))]
        for schedule in self.schedules:
            schedule.prepare(max_iters, epoch_length)
        self._restart()

    def _restart(self) -> None:
        self._values, self._iteration = list(self.base), -1

    def at(self, iteration: int) -> list[float]:
        """Rates for the step numbered `iteration` (from 0); cheap when called in rising order."""
        if iteration < self._iteration:
            self._restart()
        while self._iteration < iteration:
            self._iteration += 1
            self._advance(self._iteration)
        return list(self._values)

    def _advance(self, iteration: int) -> None:
        order = self.schedules
        if iteration:  # upstream steps the per-iteration schedules first, then, at an epoch's end, the per-epoch ones
            order = sorted(order, key=lambda schedule: schedule.by_epoch)
        for schedule in order:
            if schedule.by_epoch and iteration % self.epoch_length:
                continue
            now = iteration // self.epoch_length if schedule.by_epoch else iteration
            if schedule.begin <= now < schedule.end:
                step = now - schedule.begin
                self._values = [schedule.change(v, b, step) if schedule.part in (None, part) else v
                                for v, b, part in zip(self._values, self.base, self.parts)]

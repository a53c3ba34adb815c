"""A run on many ranks: who this process is, what the ranks agree on, and how the job ends when one of them fails.

`mpirun -np N` (or `jseg launch -n N`) starts N processes; each holds the whole model and a part of every batch. What a
step sends:

    agree        before the step, 16 bytes per rank: has every rank its pictures, does anybody want to stop
    the forward  two small sums for each batch norm (and two backward), one number for each loss: see jseg.ops.ranks
    exchange     after the backward pass ONE message: all gradients, the numbers of the log, and one slot for each rank
                 that shows NaN

Rank 0 alone reads states, logs and writes; `from_main` hands what it read to the others. A rank that fails prints why
and leaves by `os._exit`: the interpreter's ordinary end would wait in MPI_Finalize for ranks that wait for this one.
mpirun then ends the rest. `watched` starts a process beside each rank that names it and ends the job when it stalls
(see watch.py).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np

from jseg import runtime_signals
from jseg.engine.run_folder import StopRequest
from jseg.engine.watch import WAITING
from jseg.errors import DataError, JsegError
from jseg.losses.base import is_loss
from jseg.ops.ranks import barrier, broadcast, gather, rank, step, world_size

__all__ = ["rank", "world_size", "step", "barrier", "is_main", "name", "hosts", "gather", "gather_objects", "from_main",
           "sum_counts", "any_rank", "same_start", "same_statistics", "raised_everywhere", "JobStop",
           "agree", "exchange", "share_numbers", "beat", "watched", "as_rank", "tell", "Silent", "WAITING",
           "DEFAULT_STALL_SECONDS"]

DEFAULT_STALL_SECONDS = 1800.0  # longer than any first compilation or slow disk that was seen
# what `exchange` cost so far, its waiting for other ranks included
EXCHANGE = {"seconds": 0.0, "messages": 0, "bytes": 0}


# --- who -------------------------------------------------------------------------------------------------------------
def is_main() -> bool:
    """Whether this process reads states, logs and writes: rank 0, or the only process."""
    return rank() == 0


def tell(text: str) -> None:
    """Print on standard error once for the whole job."""
    if is_main():
        with runtime_signals.unheard():
            print(text, file=sys.stderr)


def name(number: int | None = None) -> str:
    """How a rank is called in messages; of another rank only the number is known here."""
    return (f"rank {rank()} of {world_size()} on {socket.gethostname()}" if number is None
            else f"rank {number} of {world_size()}")


def hosts() -> str:
    """One line for the log: how many ranks, and where."""
    found = Counter(gather_objects(socket.gethostname()))
    return f"{world_size()} ranks: " + ", ".join(f"{count} on {host}" for host, count in found.items())


# --- exchanges of host data -------------------------------------------------------------------------------------------
def _broadcast_bytes(data: bytes | None, root: int) -> bytes:
    size = np.array([len(data) if data is not None else 0], np.int64)
    broadcast(size, root)
    buffer = np.frombuffer(data, np.uint8).copy() if data is not None else np.empty(int(size[0]), np.uint8)
    broadcast(buffer, root)
    return buffer.tobytes()


def gather_objects(thing: Any) -> list:
    """The `thing` of every rank, in their order, on every rank."""
    if world_size() == 1:
        return [thing]
    packed = pickle.dumps(thing, pickle.HIGHEST_PROTOCOL)
    return [pickle.loads(_broadcast_bytes(packed if r == rank() else None, r)) for r in range(world_size())]


def from_main(make: Callable[[], Any]) -> Any:
    """Call `make` on rank 0 and return its result on every rank. An error there ends rank 0, and with it the job."""
    if world_size() == 1:
        return make()
    packed = pickle.dumps(make(), pickle.HIGHEST_PROTOCOL) if is_main() else None
    return pickle.loads(_broadcast_bytes(packed, 0))


def sum_counts(counts: np.ndarray) -> np.ndarray:
    """Sum of integer counts over ranks, exact: they travel and are added as int64."""
    return sum(gather(np.asarray(counts, np.int64)))


def any_rank(condition: bool) -> bool:
    """Whether the condition holds on at least one rank."""
    return bool(sum_counts(np.array([bool(condition)])).any())


def same_start(model) -> None:
    """Give every rank rank 0's parameters and running statistics, in one message."""
    if world_size() == 1:
        return
    state = model.state_dict()
    flat = np.concatenate([np.ravel(var.numpy()) for var in state.values()]).astype(np.float32, copy=False)
    broadcast(flat)
    start = 0
    for var in state.values():
        var.update(jt.array(flat[start:start + var.numel()].reshape(tuple(var.shape))).cast(str(var.dtype)))
        start += var.numel()
    jt.sync_all(True)


def same_statistics(model) -> None:
    """Give every rank rank 0's running statistics of the norms that do not share theirs (`{type: BN, sync: false}`)."""
    for module in model.modules() if world_size() > 1 else ():
        if hasattr(module, "running_mean") and not getattr(module, "sync", True):
            for var in (module.running_mean, module.running_var):
                values = var.numpy()
                broadcast(values)
                var.update(jt.array(values))


# --- a step ----------------------------------------------------------------------------------------------------------
class JobStop(StopRequest):
    """A wish to stop that the ranks grant together: `signal` is set only by `agree`,
    on all of them before the same step.

    SIGUSR1, which mpirun forwards, counts as SIGTERM. So does SIGCONT, which mpirun sends first when it is told to end
    a job, two seconds (or the grace of `jseg launch`) before it kills; under Slurm, which continues suspended jobs with
    it, it does not.
    """

    def __init__(self):
        super().__init__()
        self._wish: int | None = None

    @property
    def wish(self) -> int | None:
        """The signal that this process has got."""
        return self._wish if world_size() > 1 else self.signal

    def __enter__(self) -> "JobStop":
        super().__enter__()
        if world_size() > 1 and "SLURM_JOB_ID" not in os.environ:
            with contextlib.suppress(ValueError):  # not the main thread
                self._answers.callback(signal.signal, signal.SIGCONT,
                                       signal.signal(signal.SIGCONT,
                                                     lambda number, frame: self._take_signal(signal.SIGTERM)))
        return self

    def _take_signal(self, number: int) -> None:
        if world_size() == 1 or self.at_once:
            return super()._take_signal(number)
        runtime_signals.mute_broken_output()
        if self._wish is None and is_main():
            _say("asked to stop: finishing this step on all ranks, then saving")
        self._wish = self._wish or number


def agree(stop: JobStop, error: DataError | None = None) -> None:
    """Before a step: set `stop.signal` everywhere if any rank has the wish;
    raise everywhere if any could not load its pictures.

    Raises:
        DataError: the first such rank's error, with its name.
    """
    if world_size() == 1:
        if error is not None:
            raise error
        return
    beat(WAITING)
    found = np.stack(gather(np.array([error is not None, stop.wish or 0], np.int64)))  # (ranks, 2)
    if found[:, 0].any():
        first = int(found[:, 0].argmax())
        text = pickle.loads(_broadcast_bytes(pickle.dumps(f"{name()}: {error}") if rank() == first else None, first))
        raise raised_everywhere(DataError(text)) from error
    if found[:, 1].any():
        stop.signal = int(found[:, 1].max())


def raised_everywhere(error: JsegError) -> JsegError:
    """Mark an error that every rank raises at the same point: rank 0 prints it for all."""
    error.on_every_rank = True
    return error


def exchange(message: jt.Var) -> jt.Var:
    """Sum of a float32 vector over ranks; it is computed before the clock of `EXCHANGE` starts."""
    if world_size() == 1:
        return message
    message.sync(True)
    beat(WAITING)
    began = time.perf_counter()
    result = message.mpi_all_reduce("add")
    result.sync(True)
    EXCHANGE["seconds"] += time.perf_counter() - began
    EXCHANGE["messages"] += 1
    EXCHANGE["bytes"] += message.nbytes
    beat("computes")
    return result


def share_numbers(optimizer, losses: dict[str, jt.Var], labels: np.ndarray, ignore_index: int, *,
                  closes: bool) -> tuple[dict, int | None]:
    """After a backward pass: the step's numbers over all ranks, and the rank that made them inf or NaN.

    That rank is the first whose loss is not finite, or else the first whose gradient is not. It is None when all ranks
    are finite, and also when none is: a norm over all ranks spreads one rank's NaN to every other.

    Losses are added up over ranks; accuracies are averaged, weighted by the pixels that count. When the step `closes` a
    sum of gradients, the gradients travel in the same message, and `optimizer` then holds their sum over ranks.
    """
    names, counted = list(losses), float((labels != ignore_index).sum())
    weights = np.array([1.0 if is_loss(key) else counted for key in names] + [counted], np.float32)
    values = jt.concat([losses[key].float32().reshape((1,)) for key in names] + [jt.ones((1,), "float32")]) * jt.array(
        weights)
    place = jt.array(np.eye(world_size(), dtype=np.float32)[rank()])
    slots = [jt.ternary(place > 0.5, health.float32().reshape((1,)).broadcast(place), jt.zeros_like(place))
             for health in (losses["loss"], optimizer.squares())]  # finite, or not: only that counts
    message, before = jt.concat([values, *slots]), EXCHANGE["seconds"]
    if closes:
        found = optimizer.share(message).numpy()
    else:
        beat(WAITING)
        found = sum(gather(message.numpy()))
        beat("computes")
    numbers = {key: float(found[i]) for i, key in enumerate(names)}
    every = float(found[len(names)])
    numbers = {key: value if is_loss(key) else value / max(every, 1.0) for key, value in numbers.items()}
    numbers["exchange_s"] = EXCHANGE["seconds"] - before  # rank 0's ends up in the log
    spoilt = ~np.isfinite(found[-2 * world_size():].reshape(2, -1))  # (loss or gradient, rank)
    culprits = [int(row.argmax()) for row in spoilt if row.any() and not row.all()]
    return numbers, culprits[0] if culprits else None


# --- the end of a rank -----------------------------------------------------------------------------------------------
_watcher: subprocess.Popen | None = None
_steps_done = 0
_PARENT = os.getppid()  # mpirun, while it lives


def beat(phase: str, steps: int | None = None) -> None:
    """Tell the watcher what this rank does now and how many steps it has finished; nothing without a watcher."""
    global _steps_done
    _steps_done = _steps_done if steps is None else steps
    if _watcher is not None:
        with contextlib.suppress(OSError):
            os.write(_watcher.stdin.fileno(), f"{phase} {_steps_done}\n".encode())


@contextlib.contextmanager
def watched(seconds: float = DEFAULT_STALL_SECONDS) -> Iterator[None]:
    """Have this rank named and ended when it says nothing for `seconds` within the body;
    nothing on a single process.
    """
    global _watcher
    if world_size() == 1 or _watcher is not None:
        yield
        return
    _watcher = subprocess.Popen([sys.executable, "-I", "-S", str(Path(__file__).with_name("watch.py")),
                                 str(os.getpid()), name(), str(seconds),
                                 str(_PARENT)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.write(_watcher.stdin.fileno(), b"bye\n")
        _watcher.stdin.close()
        _watcher.wait()
        _watcher = None


def as_rank(body: Callable[[], int]) -> int:
    """Run a command's body as one rank: an error on any rank ends the job with its words and status;
    all leave together.

    Args:
        body: returns the exit status; a status other than 0 must be the same on every rank.
    """
    if world_size() == 1:
        return body()
    try:
        status = body()
        barrier()  # rank 0 has written and said everything
        if status > 128 and "JSEG_LAUNCH" in os.environ and os.getppid() == _PARENT:
            return 0  # all stopped together, and jseg launch knows why: mpirun would take seconds over any other status
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        _say(f"{name()} left by sys.exit({stop.code!r}); the job ends")
    except BaseException as error:
        status = _last_words(error)
    if status:
        _leave(status)
    return 0


def _last_words(error: BaseException) -> int:
    """Print why this rank ends; returns the exit status."""
    number = runtime_signals.asked(error)
    if number is not None:
        return 128 + number
    if isinstance(error, JsegError):
        if not getattr(error, "on_every_rank", False):
            if not is_main():
                # where all fail alike, rank 0 speaks, and its end ends the others before they repeat it
                time.sleep(1.0)
            _say(f"{name()}: {error}")
        elif is_main():
            _say(str(error))
        else:
            time.sleep(1.0)
        return 2
    _say(f"{name()} failed; the job "
         f"ends:\n{''.join(traceback.format_exception(type(error), error, error.__traceback__))}")
    return 1


def _say(text: str) -> None:
    """One write, so that the words of several ranks do not mix; nothing where nobody reads any more."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text.rstrip()}\n".encode())


def _leave(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def _end_job_on_error(kind, error, trace) -> None:
    """The excepthook of a rank: scripts that call jseg under mpirun end the job as commands do."""
    _leave(_last_words(error.with_traceback(trace)))


if world_size() > 1:
    sys.excepthook = _end_job_on_error


class Silent:
    """Takes the calls of a `RunLog` on ranks that do not log."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *exc_info) -> None:
        pass

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *args, **options: None

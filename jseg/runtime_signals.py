"""How a command ends by Ctrl-C, SIGTERM or SIGHUP: at any moment, within 3 seconds,
with its status and nothing left behind.

`take_over()` runs first of all when jseg is imported. In a process that is a command (`jseg`, `python -m jseg`, a
script of tools/) it installs one handler for all these signals, and what that does depends on the moment:

    imports, start and end of the process   leave at once: nothing has begun
    a command that runs (`raising`)         `Stopped` is raised in the main thread, so that every `finally` runs
    a training run (`answering`)            the run's own answer: finish the step, save, leave

Whoever is raised at may hang, or be in a C++ call that no Python handler interrupts: after GRACE seconds a thread, and
a little later a handler in C (signals.cc, there as soon as Jittor is), end the process whatever it does. Either way
files named by `temporary_file` are removed and processes that were started in this process group are ended. Other
processes that import jseg (a user's script, a data worker) keep their handlers; they get `guarded_import` alone, which
keeps Jittor's handlers and compile pool away from them.
"""

from __future__ import annotations

# without what `signal` imports: every millisecond before the first handler is one in which Ctrl-C ends in a traceback
import _signal
import os
import sys


def _is_command_line() -> bool:
    """Whether the interpreter was started as `jseg`,
    as `python -m jseg...` or with a script of this checkout's tools/.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return False
    script = sys.argv[0] if sys.argv else ""
    if script == "-m":  # the package is looked for before its name is there
        try:
            with open("/proc/self/cmdline") as file:
                words = file.read().split("\0")
        except (OSError, ValueError):
            words = list(getattr(sys, "orig_argv", ()))
        return any(a == "-m" and b.split(".")[0] == "jseg" for a, b in zip(words, words[1:]))
    here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return os.path.basename(script) in ("jseg", "jseg.exe") or os.path.realpath(script).startswith(
        (f"{here}/tools/", f"{here}/jseg/"))


def _handle(number: int, answer) -> None:
    """Set a handler, unless the signal is SIGHUP and ignored, as nohup wants it."""
    if number != getattr(_signal, "SIGHUP", None) or _signal.getsignal(number) != _signal.SIG_IGN:
        _signal.signal(number, answer)


NUMBERS = [getattr(_signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(_signal, name)]
# of mpirun, which passes it on; it counts as SIGTERM
NUMBERS += [_signal.SIGUSR1] if "OMPI_COMM_WORLD_SIZE" in os.environ else []
_owner: int | None = None  # the process that is a command; a fork of it is none
if _is_command_line():
    try:
        for _number in NUMBERS:
            _handle(_number, lambda number, frame: os._exit(128 + number))  # until `take_over`
        _owner = os.getpid()
    except ValueError:  # not the main thread
        pass

import _thread  # noqa: E402
import atexit  # noqa: E402
import contextlib  # noqa: E402
import pathlib  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
from typing import Any, Callable, Iterator, NoReturn  # noqa: E402

__all__ = ["Stopped", "take_over", "is_command", "raising", "answering", "asked", "limit", "stop", "end", "leave",
           "temporary_file", "mute_broken_output", "unheard", "runs", "state_of",
           "guarded_import"]

GRACE = 1.8  # seconds for Python's own way out: `finally` blocks, workers
LAST_GRACE = 2.4  # then the handler in C ends the process
SOURCE = pathlib.Path(__file__).with_name("signals.cc")

_answer: Callable[[int], None]
_asked: int | None = None  # the first signal that came
_parts: dict[str, int] = {}  # file -> its place in signals.cc, -1 without
_library: Any = None  # signals.cc


class Stopped(KeyboardInterrupt):
    """A signal ends the command. `number` is the signal, `status` the exit status; catch it only to raise it again."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number, self.status = number, 128 + number


def take_over() -> None:
    """Answer signals from now on if this process is one of jseg's commands; does nothing in any other."""
    global _answer
    if not is_command():
        return
    _answer = _leave_at_once
    for number in NUMBERS:
        _handle(number, _on_signal)
    atexit.register(_ignore_all)  # the first to be registered is the last to be called


def is_command() -> bool:
    """Whether signals of this process are answered here."""
    return _owner == os.getpid()


def asked(error: BaseException | None = None) -> int | None:
    """The signal that ends this command, or None; `error` is what came up because of it:
    where a signal has come, any error is.
    """
    if isinstance(error, Stopped):
        return error.number
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else _asked


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within it signals raise `Stopped` in the main thread;
    outside a command KeyboardInterrupt is all there is, as ever.
    """
    with _answered_by(stop):
        yield


@contextlib.contextmanager
def answering(answer: Callable[[int], None]) -> Iterator[None]:
    """Within it SIGINT, SIGTERM and SIGHUP call `answer(number)` in the main thread,
    also in a process that is no command.

    A second SIGINT must end the process: in a command it does so within a moment, whatever `answer` does.
    """
    if is_command():
        with _answered_by(answer):
            yield
        return
    before = {}
    with contextlib.suppress(ValueError):  # outside the main thread signals stay as they are
        for number in NUMBERS:
            before[number] = signal.getsignal(number)
            _handle(number, lambda number, frame: answer(_meant(number)))
    try:
        yield
    finally:
        for number, handler in before.items():
            plain = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, plain if handler is None else handler)  # None: C code had set it


def limit(limited: bool) -> None:
    """Within `answering`: whether the first signal gives a C++ call LAST_GRACE seconds,
    as for `stop`, or as long as it takes.
    """
    if _library is not None:
        _library.jseg_signals_grace(int(1000 * LAST_GRACE) if limited else 0)


def stop(number: int) -> None:
    """The answer of commands: end by raising `Stopped`, within GRACE seconds;
    the second signal ends the process at once.
    """
    global _asked
    if not is_command():
        raise Stopped(number)
    if _asked is not None:
        leave(128 + _asked)
    _asked = number
    # it may be raised in a __del__, or in what C code calls and prints the error of
    sys.excepthook = sys.unraisablehook = lambda *_: None
    mute_broken_output()
    with contextlib.suppress(RuntimeError):
        # without threading's locks, which the main thread may hold
        _thread.start_new_thread(_leave_later, (128 + number,))
    raise Stopped(number)


def end(number: int) -> int:
    """Say what ended the command and leave; only where this process is no command, return the exit status instead."""
    words = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    if not is_command():
        print(words, file=sys.stderr)
        return 128 + number
    with contextlib.suppress(OSError):
        os.write(2, f"{words}\n".encode())  # not through a stream: the signal may have come while one was busy
    return leave(128 + number)


def leave(status: int) -> NoReturn:
    """End this process now: no interpreter shutdown, which may wait for what the signal broke. Never returns."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if is_command():
        _tidy()
    os._exit(status)


@contextlib.contextmanager
def temporary_file(path: str | os.PathLike) -> Iterator[None]:
    """A file that must not stay if the body does not rename it:
    it is removed when the body ends, also when a signal ends the process.
    """
    name = os.path.abspath(path)
    _parts[name] = _library.jseg_signals_part(os.fsencode(name)) if _library is not None else -1
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
        place = _parts.pop(name, -1)
        if place >= 0:
            _library.jseg_signals_done(place)


def mute_broken_output() -> None:
    """Lead standard output and error to nowhere where their terminal or reader is gone:
    words must not end a run that saves.
    """
    import select
    for number in (1, 2):
        poll = select.poll()
        with contextlib.suppress(OSError):
            poll.register(number, 0)
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Around words on standard output or error that may find no reader any more:
    they are lost, and so are all that follow.
    """
    try:
        yield
    except OSError:
        mute_broken_output()


# --- what happens ----------------------------------------------------------------------------------------------------
def _meant(number: int) -> int:
    return signal.SIGTERM if number == getattr(signal, "SIGUSR1", None) else number


def _ignore_all() -> None:
    """The command is over and its status stands; the rest of the interpreter's end runs no handler,
    and would end by the signal.
    """
    if is_command():
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)


def _on_signal(number: int, frame) -> None:
    if not is_command():  # a fork, such as a process of Jittor's compile pool before it has its own handlers
        os._exit(128 + number)
    _answer(_meant(number))


@contextlib.contextmanager
def _answered_by(answer: Callable[[int], None]) -> Iterator[None]:
    global _answer
    if not is_command():
        yield
        return
    before = _answer
    _answer = answer
    limit(_answer in (stop, _leave_at_once))
    try:
        yield
    finally:
        _answer = before
        limit(_answer in (stop, _leave_at_once))


def _leave_at_once(number: int) -> None:
    global _asked
    _asked = _asked or number
    mute_broken_output()
    end(_asked)


def _leave_later(status: int) -> None:
    time.sleep(GRACE)
    _tidy()  # without a flush: the main thread may hold the lock of a stream
    os._exit(status)


def _tidy() -> None:
    """End the processes that this one started in its group, and remove the files of `temporary_file`."""
    pool = getattr(sys.modules.get("jittor_utils"), "p", None)
    if pool is not None:
        pool._worker_handler._state = "TERMINATE"  # it would replace the processes that end
    for how in (signal.SIGTERM, signal.SIGKILL):
        children = _descendants()
        for process in children:
            with contextlib.suppress(OSError):
                os.kill(process, how)
        until = time.monotonic() + 0.3
        while how == signal.SIGTERM and time.monotonic() < until and any(map(runs, children)):
            time.sleep(0.01)
    for path in list(_parts):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _descendants() -> list[int]:
    """Processes under this one, without those in a process group of their own, which end themselves."""
    found, group = {}, os.getpgrp()
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit() and (words := _stat(int(name))) and int(words[2]) == group:
            found.setdefault(int(words[1]), []).append(int(name))
    todo, under = [os.getpid()], []
    while todo:
        children = found.get(todo.pop(), [])
        todo += children
        under += children
    return under


def _stat(process: int) -> list[str] | None:
    """State, parent, group and so on of a process."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def state_of(process: int) -> str:
    """The kernel's letter for what a process or thread does: R, S, D, T, Z and others;
    empty where there is none such.
    """
    words = _stat(process)
    return words[0] if words else ""


def runs(process: int) -> bool:
    """Whether a process lives, which one that only waits to be asked how it ended does not."""
    return state_of(process) not in ("", "Z")


# --- Jittor ----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def guarded_import(import_utilities: Callable[[], Any]) -> Iterator[None]:
    """Import Jittor within this: its signal handlers do not come in, and its compile pool does not outlive the import.

    Args:
        import_utilities: imports and returns `jittor_utils`.

    Jittor ends the process on the spot, with status 1, at SIGINT and when any child dies by a signal. Its pool stays
    until the interpreter's end and waits there for a lock for ever when a terminal's Ctrl-C has reached its processes
    too.
    """
    before = {number: signal.getsignal(number)
              for number in (*NUMBERS, *([signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else []))}
    during = dict(before)
    # a rank waits for the others in a C call, which no Python handler ends
    if is_command() and signal.SIGUSR1 in NUMBERS:
        during.update({signal.SIGTERM: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL})

    def restore(wanted: dict = during) -> None:
        with contextlib.suppress(ValueError):  # outside the main thread Jittor's handlers stay
            for number, handler in wanted.items():
                if handler is not None:  # None: installed by C code, not ours to restore
                    signal.signal(number, handler)

    own = "JPY_PARENT_PID" not in os.environ
    if own:
        os.environ["JPY_PARENT_PID"] = "0"  # Jittor leaves SIGINT to notebooks
    try:
        with _answered_by(_leave_at_once):
            restore()
            utilities = import_utilities()
            with _quiet(utilities, restore):
                yield
    finally:
        restore(before)
        if own:
            os.environ.pop("JPY_PARENT_PID", None)
        if "jittor_utils" in sys.modules:
            _close_pool(sys.modules["jittor_utils"])
    _close_pools_at_once(utilities)
    if is_command():
        _load_library()


@contextlib.contextmanager
def _quiet(utils, restore: Callable[[], None]) -> Iterator[None]:
    """Undo what loading Jittor's libraries does to signals as soon as it has happened;
    give the pool's processes quiet handlers.
    """
    scope, initializer, parent = utils.import_scope, utils.pool_initializer, os.getpid()

    @contextlib.contextmanager
    def import_scope(flags):
        try:
            with scope(flags):
                yield
        finally:
            restore()

    def pool_initializer():
        # has the kernel end this process with its parent, which may be gone by now: the pool replaces what `_tidy` ends
        initializer()
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGINT, lambda *_: None)  # not ignored: the compiler, which inherits that, has to end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    utils.import_scope, utils.pool_initializer = import_scope, pool_initializer
    try:
        yield
    finally:
        utils.import_scope = scope


def _close_pool(utils) -> None:
    """End the compile pool while its processes live."""
    pool = getattr(utils, "p", None)
    if pool is None:
        return
    atexit.unregister(utils.pool_cleanup)
    del utils.p
    utils.pool_size = 0
    pool.terminate()
    pool.join()


def _close_pools_at_once(utils) -> None:
    """After the import a pool is only made for rare extensions: let each end with its work."""
    compile_all = utils.run_cmds

    def run_cmds(*args, **options):
        try:
            return compile_all(*args, **options)
        finally:
            _close_pool(utils)

    utils.run_cmds = run_cmds


def _load_library() -> None:
    """Put signals.cc before the handlers, compiled once per machine; without it a long C++ call is waited for."""
    global _library
    import ctypes
    import hashlib
    import shutil
    import subprocess
    import tempfile
    jt = sys.modules.get("jittor")
    if jt is None or not sys.platform.startswith("linux"):
        return
    try:
        text = SOURCE.read_bytes()
        target = pathlib.Path(jt.flags.cache_path) / f"jseg_signals-{hashlib.sha256(text).hexdigest()[:16]}.so"
        if not target.is_file():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                made = pathlib.Path(folder) / target.name
                subprocess.run([jt.flags.cc_path, "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(made), "-lrt"],
                               check=True, capture_output=True)
                shutil.move(made, target)
        library = ctypes.PyDLL(str(target))  # with the GIL: its table has no lock
        numbers = [number for number in NUMBERS if signal.getsignal(number) is _on_signal]
        if library.jseg_signals_install((ctypes.c_int * len(numbers))(*numbers), len(numbers)) == 0:
            _library = library
            limit(_answer in (stop, _leave_at_once))
    except (OSError, subprocess.SubprocessError, AttributeError):
        pass



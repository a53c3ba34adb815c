"""A word for programs that import Jittor first and fail.

`import jittor` alone fails on some machines where `import jseg` before it works: with a CUDA compiler and no driver,
for instance, by `OSError: libcudart.so: cannot open shared object file`. No code of jseg runs then, unless Python's
start-up files name it. So a wheel carries a copy of this file, `_jseg_order`, and a line `jseg_order.pth` that imports
it (setup.py). It costs a fraction of a millisecond per start, changes nothing where Jittor's import succeeds or jseg
came first, and adds a note to the error where it fails. It imports nothing of jseg, which it must not load.
"""

import sys

__all__ = ["WORD", "watch"]

WORD = ("jittor alone could not be imported. A program that uses jseg imports it first, so that it prepares the "
        "process (compiler, CUDA, cache, NumPy): put `import jseg` above `import jittor`; `jseg doctor` says what it "
        "finds here")


class _Watcher:
    """Stands before the other finders and answers for the module `jittor` alone, while jseg is not imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "jittor" or "jseg" in sys.modules:
            return None
        from importlib.machinery import PathFinder
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _telling(spec.loader.exec_module)
        return spec


def _telling(execute):
    """`exec_module` that adds the word to an error."""
    def execute_and_tell(module):
        try:
            execute(module)
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(WORD)
            else:
                print(WORD, file=sys.stderr)
            raise
    return execute_and_tell


def watch() -> None:
    """Begin to watch for `import jittor`."""
    sys.meta_path.insert(0, _Watcher)


if __name__ == "_jseg_order":
    watch()

"""The exceptions jseg raises for its callers.

Arguments of a function raise the built-in `ValueError` and `TypeError`. The classes here mark faults that come from
outside the code: a config file, a dataset, a checkpoint, a kernel, the machine. A command line prints their text
without a traceback and exits with status 2. Every message says where, what came, what is accepted and what to do.
"""

__all__ = ["JsegError", "ConfigError", "DataError", "ConvertError", "CheckpointError", "KernelError",
           "ExportError", "RuntimeSetupError", "WriteError"]


class JsegError(Exception):
    """Base of all errors a user can cure; its text is the whole message."""


class ConfigError(JsegError):
    """A config file, an override or a constructor argument named in one is wrong."""


class DataError(JsegError):
    """A picture, a mask or a dataset folder is missing, unreadable or contradicts the config.

    Args:
        text: the whole message.
        kind: of a file's fault: "missing", "not regular", "unreadable", "samples", "limit", "coloured", "size" or
            "label"; else empty.
        path: the file.
        values: the labels or colours that do not belong.
    """

    def __init__(self, text: str = "", *, kind: str = "", path: str = "", values: tuple = ()):
        super().__init__(text)
        self.kind, self.path, self.values = kind, path, values


class ConvertError(JsegError):
    """A foreign checkpoint, config or raw dataset cannot be translated."""


class CheckpointError(JsegError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class KernelError(JsegError):
    """A kernel was called with shapes or types it does not take, or cannot run on this device."""


class ExportError(JsegError):
    """A model cannot be exported, an exported file differs from its model, or such a file cannot be run."""


class RuntimeSetupError(JsegError):
    """The machine lacks something that Jittor or jseg needs."""


class WriteError(JsegError):
    """A file cannot be written: the disk is full or writing there is not allowed."""

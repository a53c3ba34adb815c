"""bfloat16 products at inference, on processors that have instructions for them."""

from __future__ import annotations

import functools

from jseg.errors import ConfigError
from jseg.runtime import cpu_fact

__all__ = ["cpu_has_bf16", "set_precision"]


@functools.lru_cache(maxsize=None)
def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 (AVX512_BF16)."""
    return {"avx512_bf16", "avx512bw"} <= set(cpu_fact("flags").split())


def set_precision(model, precision: str) -> None:
    """Let a model compute its products so at inference, see `ops.use`.

    Args:
        model: a `Segmentor`, or an `ImageClassifier`, which takes float32 alone.
        precision: "float32" or "bf16".
    Raises:
        ConfigError: another word, or one that this model or this machine does not have.
    """
    if precision not in model.precisions:
        raise ConfigError(f"precision is {precision!r}; accepted for this model: {', '.join(model.precisions)}")
    if precision == "bf16":
        _check_bf16(model)
    model.precision = precision


def _check_bf16(model) -> None:
    import jittor as jt
    if jt.flags.use_cuda or model.impl == "jittor":
        raise ConfigError("precision 'bf16' is one of the CPU kernels and this model computes "
                          f"{'on a GPU' if jt.flags.use_cuda else 'with plain operators'}; use precision 'float32'")
    if not cpu_has_bf16():
        raise ConfigError("precision 'bf16' needs a CPU with AVX512_BF16 (AMD Zen 4, Intel Cooper Lake, Sapphire "
                          "Rapids and later), which this one is not; use precision 'float32'")

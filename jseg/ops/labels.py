"""One look at the labels of a batch: each is a class or ignored. Kernels read out of bounds for others, sums leave them
out in silence."""

from __future__ import annotations

import jittor as jt

from jseg.errors import KernelError

__all__ = ["check_label_range"]

FIRST_ON_GPU = 16  # calls that are looked at on CUDA, where a look waits for the device: a wrong config shows at once
_looked = 0


def check_label_range(name: str, labels: jt.Var, classes: int, ignore_index: int) -> None:
    """Raise unless every label is in 0..classes - 1 or `ignore_index`; on CUDA only the first batches are looked at.

    Args:
        name: who asks, for the message.
        labels: (N, H, W) int.
        classes: K, at least 2.
    Raises:
        KernelError: tells how many labels are odd, the first of them, and what to compare.
    """
    global _looked
    if jt.flags.use_cuda:
        if _looked >= FIRST_ON_GPU:
            return
        _looked += 1
    values = labels.numpy()
    wrong = values[((values < 0) | (values >= classes)) & (values != ignore_index)]
    if wrong.size:
        raise KernelError(f"{name}: {wrong.size} labels are outside the {classes} classes, the first is "
                          f"{int(wrong[0])}; accepted: "
                          f"0..{classes - 1} and ignore_index {ignore_index}. Compare ignore_index of the dataset, of "
                          f"every head, "
                          "data_preprocessor.seg_pad_val and the pad labels of transforms; check reduce_zero_label and "
                          "num_classes")

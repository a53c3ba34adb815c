"""A list of modules under numbered keys, some of which may be missing: PyTorch's ModuleList and named Sequential."""

from __future__ import annotations

from typing import Iterator, Sequence

from jittor import nn

__all__ = ["Numbered"]


class Numbered(nn.Module):
    """Modules under the keys "<prefix>0", "<prefix>1", ...; `self[i]` is the one at i, None where there is none.

    Args:
        parts: the modules; a None leaves its number out.
        prefix: before the number.
    """

    def __init__(self, parts: Sequence[nn.Module | None], prefix: str = ""):
        super().__init__()
        self.count, self.prefix = len(parts), prefix
        for i, part in enumerate(parts):
            if part is not None:
                setattr(self, f"{prefix}{i}", part)

    def __getitem__(self, place: int) -> nn.Module | None:
        return self.__dict__.get(f"{self.prefix}{place}")

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[nn.Module | None]:
        return (self[i] for i in range(self.count))

"""List every model, loss, dataset, transform, optimizer and schedule a config may name."""

from __future__ import annotations

EXAMPLE = "jseg names"
KINDS = (("models", "MODELS"), ("losses", "LOSSES"), ("datasets", "DATASETS"), ("transforms", "TRANSFORMS"),
         ("optimizers", "OPTIMIZERS"), ("schedules", "SCHEDULES"))


def add_arguments(parser) -> None:
    """`jseg names` has no options."""


def run(args) -> int:
    """Print the list that the README shows."""
    print(supported())
    return 0


def supported() -> str:
    """One Markdown line for each kind, names in alphabetical order."""
    import jseg.data  # noqa: F401  (importing a room enters its classes)
    import jseg.engine.optim  # noqa: F401
    import jseg.engine.schedules  # noqa: F401
    import jseg.losses  # noqa: F401
    import jseg.models  # noqa: F401
    from jseg import registry
    return "\n".join(f"- **{title}**: {', '.join(getattr(registry, name).names())}" for title, name in KINDS)

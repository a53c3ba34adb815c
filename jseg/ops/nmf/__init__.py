"""The operation `nmf`; see op.py."""

"""The operation `criss_cross`; see op.py."""

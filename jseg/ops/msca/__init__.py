"""The operation `msca`; see op.py."""

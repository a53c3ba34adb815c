"""The operation `depthwise`; see op.py."""

"""The operation `psa_mask`; see op.py."""

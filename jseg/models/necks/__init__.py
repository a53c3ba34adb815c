"""Necks; each file registers its classes."""

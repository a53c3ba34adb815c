"""Heads; each file registers its classes."""

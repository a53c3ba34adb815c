"""Backbones; each file registers its classes."""

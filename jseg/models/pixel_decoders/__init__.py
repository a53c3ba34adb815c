"""Pixel decoders: what a head that classifies masks reads masks from. One paper, one file."""

"""Fixtures of the encoders that tasks begin with."""

from evaluate.conftest import encoder, stripes

__all__ = ["encoder", "stripes"]

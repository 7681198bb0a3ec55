"""Inverters: recover a trigger from a network and the defender's images, or be told it."""

from excise.inversion.oracle import Oracle

__all__ = ["Oracle"]

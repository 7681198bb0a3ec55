"""Triggers: pure functions images → images, and how they are written to disk."""

from excise.triggers.blend import Blend
from excise.triggers.patch import Patch
from excise.triggers.saving import load_trigger, save_trigger

__all__ = ["Blend", "Patch", "load_trigger", "save_trigger"]

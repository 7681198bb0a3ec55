"""Cuts backdoors out of trained image classifiers with a handful of clean images.

>>> import excise
>>> model = excise.load_model("net.safetensors", arch="torchvision:resnet18", classes=10)
>>> clean = excise.load_images("folder/")
>>> diagnosis = excise.scan(model, clean)
>>> result = excise.repair(model, clean)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excise.api import repair as repair
    from excise.api import scan as scan
    from excise.attacks import BadNets as BadNets
    from excise.attacks import Blended as Blended
    from excise.data import load_data as load_data
    from excise.data import load_images as load_images
    from excise.defenses import GradPrune as GradPrune
    from excise.evaluation import compare as compare
    from excise.evaluation import evaluate as evaluate
    from excise.inversion import Oracle as Oracle
    from excise.models import build_model as build_model
    from excise.models import load_model as load_model
    from excise.models import save_bundle as save_bundle

#: Where each public name lives; importing excise alone must not import torch.
_HOME = {
    "BadNets": "excise.attacks",
    "Blended": "excise.attacks",
    "GradPrune": "excise.defenses",
    "Oracle": "excise.inversion",
    "build_model": "excise.models",
    "compare": "excise.evaluation",
    "evaluate": "excise.evaluation",
    "load_data": "excise.data",
    "load_images": "excise.data",
    "load_model": "excise.models",
    "repair": "excise.api",
    "save_bundle": "excise.models",
    "scan": "excise.api",
}

__all__ = [
    "BadNets",
    "Blended",
    "GradPrune",
    "Oracle",
    "build_model",
    "compare",
    "evaluate",
    "load_data",
    "load_images",
    "load_model",
    "repair",
    "save_bundle",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'excise' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__

"""How the contract suites run each defense: small enough to be quick, large enough to do its work.

One entry for every row of the registry; a test fails where one is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from excise import registry
from excise.inversion import Oracle


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One defense under test.

    Args:
        quick: fields with which it takes well under a second on 90 digits, and still does its work.
        steps: fields with which it takes two steps of every stage on six images of 32 × 32.
        full: fields with which a user of 50 images a class would run it, where they are not the
            defaults; the limits it then has to keep are those of ``excise.testing.defense``.
        untuned: fields that leave of ``quick`` only what its edits say; None: there are none such.
        validation: whether it refuses data without validation images.
        convolution: whether it refuses a network without convolutions.
        batch_norm: whether it refuses a network without batch norm.
        refuses: architectures of the families' test that it refuses, and a word of the message.
    """

    quick: Mapping[str, Any]
    steps: Mapping[str, Any]
    full: Mapping[str, Any] = field(default_factory=dict)
    untuned: Mapping[str, Any] | None = None
    validation: bool = False
    convolution: bool = False
    batch_norm: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)


VIT = "timm:vit_tiny_patch16_224,img_size=32,patch_size=8,depth=2,embed_dim=24"

#: What works on batch norms.
NORMS: dict[str, Any] = {
    "convolution": True,
    "batch_norm": True,
    "refuses": {VIT: "expected a network with batch norm"},
}

DEFENSES: dict[str, Settings] = {
    "none": Settings(quick={}, steps={}),
    # FULL: those of `excise demo`. The published threshold and rate suit 100 images a class: here
    # pruning ends with its first or second filter, and most backdoors stay.
    "grad-prune": Settings(
        quick={"max_accuracy_drop": 1.0, "patience": 3, "max_tune_epochs": 2},
        steps={
            "max_accuracy_drop": 1.0, "patience": 1, "tune_patience": 1, "max_tune_epochs": 1,
        },
        full={"max_accuracy_drop": 0.3, "learning_rate": 0.01},
        untuned={"tune_patience": 0},
        validation=True,
        convolution=True,
    ),
    "soft-prune": Settings(
        quick={"steps": 4}, steps={"steps": 2, "batch_size": 6}, full={}, convolution=True
    ),
    "bti-dbf": Settings(
        quick={
            "width": 4, "pretrain_epochs": 1, "mask_epochs": 2, "generator_epochs": 2,
            "unlearn_epochs": 2, "rounds": 2,
        },
        steps={
            "width": 2, "pretrain_epochs": 1, "mask_epochs": 1, "generator_epochs": 1,
            "unlearn_epochs": 1, "rounds": 2,
        },
        convolution=True,
        refuses={VIT: "expected a network with feature maps"},
    ),
    "npd": Settings(
        quick={"warm_epochs": 1, "epochs": 3},
        steps={"warm_epochs": 2, "epochs": 2},
        untuned={"warm_epochs": 0, "epochs": 0},
        convolution=True,
        refuses={VIT: "expected a network with convolutions after its first"},
    ),
    # FULL: the published rate suits wide networks and a thousand steps.
    "clp": Settings(
        quick={"u": 1.5}, steps={"u": 1.0}, untuned={}, **NORMS,
    ),
    "bnp": Settings(
        quick={"u": 1.5}, steps={"u": 1.0}, untuned={}, **NORMS,
    ),
    "anp": Settings(
        quick={
            "iterations": 4, "batch_size": 32, "learning_rate": 2.0,
            "max_relative_accuracy_drop": 1.0,
        },
        steps={"iterations": 2, "batch_size": 4, "learning_rate": 2.0},
        untuned={}, validation=True, **NORMS,
    ),
    "rnp": Settings(
        quick={
            "unlearning_epochs": 2, "recovering_epochs": 2, "recovering_rate": 5.0,
            "max_accuracy_drop": 1.0,
        },
        steps={"unlearning_epochs": 2, "recovering_epochs": 2},
        untuned={}, **NORMS,
    ),
    "nft": Settings(quick={"epochs": 4}, steps={"epochs": 2}, **NORMS),
    "ft": Settings(
        quick={"epochs": 2, "batch_size": 45},
        steps={"epochs": 2, "batch_size": 6},
    ),
    "ft-sam": Settings(
        quick={"epochs": 2, "batch_size": 45},
        steps={"epochs": 2, "batch_size": 6},
    ),
    "fst": Settings(
        quick={"epochs": 2, "batch_size": 45},
        steps={"epochs": 2, "batch_size": 6},
    ),
    "nad": Settings(
        quick={"epochs": 2, "teacher_epochs": 2},
        steps={"epochs": 2, "teacher_epochs": 2},
        convolution=True,
        refuses={VIT: "expected a network with feature maps"},
    ),
    "pbe": Settings(
        quick={"rounds": 1, "steps": 2},
        steps={"rounds": 1, "steps": 2},
    ),
    "sau": Settings(
        quick={"rounds": 2, "steps": 2},
        steps={"rounds": 2, "steps": 1},
        full={"rounds": 5, "batch_size": 64, "learning_rate": 1e-3},
    ),
    "mcr": Settings(
        quick={"tune_epochs": 2, "epochs": 2, "points": 3},
        steps={"tune_epochs": 2, "epochs": 2, "points": 2},
        validation=True,
    ),
    "tsbd": Settings(
        quick={"unlearning_rate": 1e-3, "unlearning_epochs": 3, "epochs": 2},
        steps={"unlearning_epochs": 2, "epochs": 2},
        full={"unlearning_rate": 1e-3, "unlearning_epochs": 100, "batch_size": 64},
        convolution=True,
    ),
    "ulrl": Settings(
        quick={"unlearning_epochs": 3, "epochs": 3},
        steps={"unlearning_epochs": 2, "epochs": 2},
    ),
    "d3": Settings(
        quick={"epochs": 4, "batch_size": 64},
        steps={"epochs": 2},
    ),
    "fp": Settings(
        quick={"share": 0.05, "max_relative_accuracy_drop": 0.5, "epochs": 2},
        steps={"share": 0.3, "max_relative_accuracy_drop": 1.0, "epochs": 1, "batch_size": 3},
        untuned={"epochs": 0},
        validation=True,
    ),
    "awm": Settings(
        quick={"outer": 2, "inner": 1},
        steps={"outer": 2, "inner": 1},
        full={"outer": 5, "batch_size": 64},
        convolution=True,
    ),
    "i-bau": Settings(
        quick={"rounds": 2},
        steps={"rounds": 2, "iterations": 2},
        full={"rounds": 20, "batch_size": 50},
    ),
    "fmp": Settings(
        quick={"one_in": 4, "images": 2, "max_filters": 4, "epochs": 1},
        steps={"one_in": 2, "images": 1, "max_filters": 2, "epochs": 2, "batch_size": 12},
        untuned={"epochs": 0},
        convolution=True,
    ),
    "ims": Settings(
        quick={"initial_rounds": 2, "rounds": 1, "steps": 1, "mask_rate": 0.3, "batch_size": 32},
        steps={"initial_rounds": 1, "rounds": 1, "steps": 1},
        convolution=True,
    ),
    "neural-cleanse": Settings(
        quick={
            "rounds": 6, "round_images": 6, "batch_size": 6, "success_rate": 0.3,
            "start_free": False, "penalty": 0.1, "threshold": 0.01, "tune_epochs": 2,
        },
        steps={
            "rounds": 2, "round_images": 4, "batch_size": 2, "success_rate": 0.01,
            "threshold": 1e-3, "tune_epochs": 1, "tune_batch_size": 6,
        },
        # FULL: the published search keeps the limits too, in minutes; this one is shorter.
        full={
            "rounds": 60, "round_images": 32, "batch_size": 16, "success_rate": 0.9,
            "start_free": False, "penalty": 0.01, "patience": 3, "learning_rate": 0.2,
            "tune_epochs": 30, "tune_batch_size": 32,
        },
    ),
    "mm-bm": Settings(
        quick={"epochs": 4, "first_bound": 2.0},
        steps={"epochs": 2},
        convolution=True,
    ),
}  # fmt: skip


def built(name, trigger, fields):
    """Build a defense; its inverter, if it takes one that must be told, is told the trigger."""
    row = registry.find("defense", name)
    required = {f["name"] for f in row.fields() if f["default"] == "required"}
    told = {"inverter": Oracle(trigger)} if "inverter" in required else {}
    return registry.build("defense", name, told | dict(fields))

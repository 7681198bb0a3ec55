"""Named networks, loading and saving without running a stranger's code, tracing, surgery."""

from excise.models.bundles import load_bundle, read_card, save_bundle, write_model
from excise.models.checking import check_model
from excise.models.loading import load_model
from excise.models.modes import copy_of, device_of, in_mode
from excise.models.names import build_model
from excise.models.normalize import Network
from excise.models.surgery import Mask, apply_edits, own_tensors, silence
from excise.models.tracing import Unit, prunable, trace

__all__ = [
    "Mask",
    "Network",
    "Unit",
    "apply_edits",
    "build_model",
    "check_model",
    "copy_of",
    "device_of",
    "in_mode",
    "load_bundle",
    "load_model",
    "own_tensors",
    "prunable",
    "read_card",
    "save_bundle",
    "silence",
    "trace",
    "write_model",
]

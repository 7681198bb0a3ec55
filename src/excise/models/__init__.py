"""Named networks, loading and saving without running a stranger's code, tracing, surgery."""

from excise.models.additions import Clamped, Plugged, add, additions
from excise.models.bundles import load_bundle, read_card, save_bundle, write_model
from excise.models.checking import check_model
from excise.models.hashing import weights_hash
from excise.models.loading import load_model
from excise.models.modes import copy_of, device_of, dtype_of, finished, in_mode, working_copy
from excise.models.names import build_model
from excise.models.normalize import Network
from excise.models.norms import BatchNorm, batch_norms, remembering, scaled, steady_statistics
from excise.models.surgery import Mask, apply_edits, convolutions, own_tensors, silence, zeroed
from excise.models.tracing import Unit, prunable, trace

__all__ = [
    "BatchNorm",
    "Clamped",
    "Mask",
    "Network",
    "Plugged",
    "Unit",
    "add",
    "additions",
    "apply_edits",
    "batch_norms",
    "build_model",
    "check_model",
    "convolutions",
    "copy_of",
    "device_of",
    "dtype_of",
    "finished",
    "in_mode",
    "load_bundle",
    "load_model",
    "own_tensors",
    "prunable",
    "read_card",
    "remembering",
    "save_bundle",
    "scaled",
    "silence",
    "steady_statistics",
    "trace",
    "weights_hash",
    "working_copy",
    "write_model",
    "zeroed",
]

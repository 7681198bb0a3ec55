"""Fit the tensors of a file to an architecture, or say in the user's words why they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from excise.errors import ModelError
from excise.models.checking import check_finite, count_outputs, few
from excise.models.names import build_model, is_built_in, skeleton
from excise.models.normalize import Network, Numbers, Size

__all__ = ["assemble"]

Shapes = Mapping[str, Tensor]

# What wrappers put before every name: DataParallel, torch.compile, this package, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "body.", "model.", "net.")
# The auxiliary outputs that only training in torchvision's GoogLeNet and Inception uses.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_WHICH = "Name the architecture, with its fields, that the weights were trained with (arch=)."


def assemble(
    state: Mapping[str, Tensor],
    *,
    arch: str,
    trusted: bool,
    classes: int | Sequence[str] | None,
    in_channels: int,
    input_size: Size | None,
    mean: Numbers | None,
    std: Numbers | None,
) -> Network:
    """Return the named network with these weights, in eval mode, as float32.

    Everything is compared before the network takes memory, so that a card that names a huge one
    costs nothing. Without ``classes`` their number is read off the output layer, or, where no
    shape tells it (a factory that takes no ``num_classes``), off the answers to two images.

    Raises:
        ModelError: an unknown architecture, tensors that are missing, left over, of another
            shape, of another kind or not finite (the message names them), or a network that
            nothing tells the number of classes of.
    """
    given = None if classes is None else classes if isinstance(classes, int) else len(classes)
    wanted = _shapes(arch, given if given and given > 0 else 1, in_channels, trusted)
    fitted = _rename(state, wanted)
    _check_names(fitted, wanted, arch)
    if given is None:
        classes = _count_classes(fitted, wanted)
        wanted = _shapes(arch, classes or 1, in_channels, trusted)
        if classes is None and is_built_in(arch):
            classes = 1  # these have as many outputs as they are asked for
    _check_shapes(fitted, wanted, arch, in_channels)
    check_finite(fitted.items())
    network = build_model(
        arch,
        classes=classes if classes is not None else 1,
        in_channels=in_channels,
        input_size=input_size,
        mean=mean,
        std=std,
        trusted=trusted,
    )
    _load(network.body, fitted)
    if classes is None:
        network.classes = tuple(str(k) for k in range(_count_answers(network)))
    return network.eval()


def _shapes(arch: str, num_classes: int, in_channels: int, trusted: bool) -> Shapes:
    # A factory of the caller's own is called in no unusual way: it may keep what it made.
    if is_built_in(arch):
        try:
            return skeleton(arch, num_classes, in_channels, trusted=trusted)
        except ModelError:
            # Some networks cannot be built without memory. One without fields has a known size,
            # so it may be built for real; that also repeats the error if there is one.
            if "," in arch and not trusted:
                raise
    network = build_model(arch, classes=num_classes, in_channels=in_channels, trusted=trusted)
    return network.body.state_dict()


def _rename(state: Mapping[str, Tensor], wanted: Shapes) -> dict[str, Tensor]:
    """Strip what wrappers put before the names, until some name is known."""
    fitted = dict(state)
    while not fitted.keys() & wanted.keys():
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in fitted)), None)
        if prefix is None:
            break
        fitted = {name.removeprefix(prefix): tensor for name, tensor in fitted.items()}
    for name in wanted:
        # Checkpoints from before torch 0.4.1 do not count batches; nothing here uses the count.
        if name.endswith("num_batches_tracked") and name not in fitted:
            owner = name.removesuffix("num_batches_tracked")
            if f"{owner}running_mean" in fitted:
                fitted[name] = fitted[f"{owner}running_mean"].new_zeros(
                    (), dtype=wanted[name].dtype
                )
    return {n: t for n, t in fitted.items() if n in wanted or not n.startswith(_AUXILIARY)}


def _check_names(fitted: Shapes, wanted: Shapes, arch: str) -> None:
    missing = [name for name in wanted if name not in fitted]
    left_over = [name for name in fitted if name not in wanted]
    if missing or left_over:
        parts = [f"{len(missing)} missing ({few(missing)})"] if missing else []
        parts += [f"{len(left_over)} it does not have ({few(left_over)})"] if left_over else []
        raise ModelError(f"the tensors of {arch}", got=" and ".join(parts), remedy=_WHICH)


def _count_classes(fitted: Shapes, wanted: Shapes) -> int | None:
    """Read the number of classes off the tensors that one class would give another length.

    None: there is none, as of a network of one class, or that has its number of classes built in.
    """
    counts = {
        tensor.shape[0]
        for name, tensor in fitted.items()
        if tensor.ndim == wanted[name].ndim > 0 and wanted[name].shape == (1, *tensor.shape[1:])
    }
    others = counts - {1}
    if len(others) > 1:
        raise ModelError(
            "one output layer that tells the number of classes",
            got=f"lengths {sorted(others)}",
            remedy="Say how many classes there are: classes=10.",
        )
    return others.pop() if others else None


def _count_answers(network: Network) -> int:
    try:
        return count_outputs(network, network.input_shape)
    except ModelError as error:
        raise ModelError(
            f"the number of classes of {network.arch}, which no shape of its weights tells",
            got=f"no answer to images of shape {network.input_shape}: {error.got}",
            remedy="Say it: classes=10; or how large the images are: input_size=(32, 32).",
        ) from error


def _check_shapes(fitted: Shapes, wanted: Shapes, arch: str, in_channels: int) -> None:
    wrong = [name for name, tensor in fitted.items() if tensor.shape != wanted[name].shape]
    if wrong:
        first = wrong[0]
        got, expected = tuple(fitted[first].shape), tuple(wanted[first].shape)
        raise ModelError(
            f"{first} of shape {expected} in {arch}",
            got=f"{got}" + (f", and {len(wrong) - 1} more that differ" if wrong[1:] else ""),
            remedy=_remedy(wrong, fitted, wanted, in_channels),
        )
    kinds = [n for n, t in fitted.items() if wanted[n].is_floating_point() > t.is_floating_point()]
    if kinds:
        raise ModelError(
            f"floating-point weights in {kinds[0]}",
            got=str(fitted[kinds[0]].dtype),
            remedy="Quantized or integer weights are not understood; save them as floats.",
        )


def _remedy(wrong: Sequence[str], fitted: Shapes, wanted: Shapes, in_channels: int) -> str:
    """Say what most likely stands wrong: the classes, the channels, or the network."""
    pairs = [(tuple(fitted[name].shape), tuple(wanted[name].shape)) for name in wrong]
    same_rank = all(len(got) == len(expected) >= 1 for got, expected in pairs)
    if same_rank and all(got[1:] == expected[1:] for got, expected in pairs):
        lengths = {(got[0], expected[0]) for got, expected in pairs}
        if len(lengths) == 1 and all(len(got) <= 2 or got[2:] == (1, 1) for got, _ in pairs):
            count, expected_count = lengths.pop()
            return f"The weights tell {count} classes apart, not {expected_count}: classes={count}?"
    got, expected = pairs[0]
    if len(pairs) == 1 and len(got) == 4 and expected[1] == in_channels and got[2:] == expected[2:]:
        return f"The weights take images of {got[1]} channels: in_channels={got[1]}?"
    return _WHICH


def _load(body: nn.Module, fitted: Mapping[str, Tensor]) -> None:
    try:
        body.load_state_dict(dict(fitted), strict=True)
    except RuntimeError as error:
        raise ModelError(
            "weights the network accepts", got=" ".join(str(error).split())[:300], remedy=_WHICH
        ) from error
    # A float64 beyond float32 becomes infinite only now.
    check_finite(body.state_dict().items())

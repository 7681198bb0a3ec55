"""Duels with authors' own repositories, for methods that no benchmark holds whole."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

# A script's own directory is first on the path, so its neighbors need no package.
from dueling import Duel, Field, Timed, clocked, repaired
from fork_duels import Unshown, cut
from peers import Peer, nothing, quiet, replaced

if TYPE_CHECKING:
    from torch import Tensor, nn


class BTIDBF(Peer):
    """A checkout of BTI-DBF's own repository, imported from where it lies.

    Args:
        root: the checkout.

    Raises:
        InputError: no checkout is there.
    """

    NAME, OPTION = "BTI-DBF's own repository", "--bti-dbf"
    PACKAGES = ("btidbfu", "cfg", "evaluate", "loader", "models")

    def __init__(self, root: Path) -> None:
        from excise.errors import InputError

        if not (root / "btidbfu.py").is_file():
            raise InputError(
                f"a checkout of {self.NAME}",
                got=f"{root} without btidbfu.py",
                remedy=f"Give its path: {self.OPTION} PATH.",
            )
        self.root, self._modules = root, {}
        with self.here(), quiet():
            self.module: Any = importlib.import_module("btidbfu")


class Batches:
    """The defender's images as the authors' loader gives them: cropped, mirrored, normalized."""

    def __init__(self, field: Field, size: int) -> None:
        import torch

        self.images, self.size = field.data.everything(), size
        self.normalize = field.model.get_submodule("normalize")
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        from excise.training.augment import crop_and_flip
        from excise.types import as_floats

        order = torch.randperm(len(self.images), generator=self.generator)
        for index in order.split(self.size):
            moved = crop_and_flip(self.images.images[index], 4, True, self.generator)
            yield self.normalize(as_floats(moved)), self.images.labels[index]


def bti_dbf(peer: BTIDBF, field: Field, method: Any) -> Duel:
    """Return the whole method: the authors' functions in the order of their script."""
    import torch
    from torch import nn

    module = peer.module

    def theirs(_: int) -> Timed:
        batches = Batches(field, method.batch_size)
        options = SimpleNamespace(
            size=32, norm_bound=0.3, feat_bound=method.benign_bound,
            mround=method.mask_epochs, uround=method.generator_epochs,
            ul_round=method.unlearn_epochs,
        )  # fmt: skip
        box = SimpleNamespace(device="cpu", num_classes=batches.images.num_classes, tlabel=None)

        def work() -> nn.Module:
            net = cut(field.body())
            made = module.UNet(
                n_channels=3, num_classes=3, base_filter_num=method.width, num_blocks=method.blocks
            )
            known: dict[str, Any] = {
                "opt": options, "device": "cpu", "box": box, "test": nothing, "tqdm": Unshown,
                "cln_trainloader": batches, "cln_testloader": (),
                "mse": nn.MSELoss(), "ce": nn.CrossEntropyLoss(),
                "opt_bd": torch.optim.Adam(made.parameters(), lr=method.generator_rate),
                "opt_cls": torch.optim.Adam(net.parameters(), lr=method.learning_rate),
            }  # fmt: skip
            with replaced(module, **known):
                for number in range(method.rounds):
                    module.n = number
                    module.reverse(net, made)
                    if number == 0:
                        module.detected_tlabel = module.get_target_label(
                            testloader=batches, testmodel=net, box=box, midmodel=made
                        )
                    module.unlearn(net, made)
            return net.get_submodule("model").eval()

        return clocked(work)

    return Duel("bti-dbf", "", lambda i: repaired(method, field, i), theirs)

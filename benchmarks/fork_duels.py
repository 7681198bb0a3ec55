"""The duels of ``against_peers.py`` with the methods that only the fork of BackdoorBench has.

As in ``duels.py``, whose words they share.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

# A script's own directory is first on the path, so its neighbors need no package.
from dueling import Duel, Field, Timed, clocked, now, repaired, timed
from peers import Nothing, Peer, named, nothing, replaced, with_norms

if TYPE_CHECKING:
    from torch import Tensor, nn

    from excise.defenses import FST, IMS, MMBM, NFT, PBE
    from excise.types import LabelledImages


def untested(*_: Any) -> tuple[float, float, float]:
    """Stand in for an evaluation on test images."""
    return 0.0, 0.0, 0.0


class Unshown:
    """Stands where the peer shows a bar of progress over something."""

    def __init__(self, steps: Any, **_: Any) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[Any]:
        return iter(self.steps)

    def set_postfix(self, said: Any) -> None: ...


def attack_of(peer: Peer, images: LabelledImages) -> dict[str, Any]:
    """Return what the peer reads of a stored attack: images to draw from, nothing to test on."""
    return {"clean_train": peer.stored(images), "clean_test": None, "bd_test": None}


def fst(peer: Peer, field: Field, method: FST | None = None) -> Duel:
    from excise.defenses import FST

    method = method or FST(epochs=2, batch_size=50)
    epochs, batch = method.epochs, method.batch_size
    module = peer.defense["fst"]

    def theirs(_: int) -> Timed:
        work = module.FST()
        work.args = peer.args(
            "fst", model="preactresnet18", training_epochs=epochs, batch_size=batch, momentum=0.9,
            spc=None, val_ratio=0, index=None, defense_save_path="",
        )  # fmt: skip
        work.attack_result = attack_of(peer, field.data.everything())

        def tune() -> nn.Module:
            work.model = field.body().eval()
            work.defense()
            tuned: nn.Module = work.model
            return tuned

        with replaced(
            module, given_dataloader_test_v2=untested, save_defense_result=nothing, pd=Nothing(),
            tqdm=Unshown,
        ):  # fmt: skip
            return clocked(tune)

    return Duel(
        "fst", f"{epochs} epochs, batch {batch}", lambda i: repaired(method, field, i), theirs
    )


def nft(peer: Peer, field: Field, method: NFT | None = None) -> Duel:
    from excise.defenses import NFT

    method = method or NFT(epochs=2, batch_size=50)
    epochs, batch = method.epochs, method.batch_size
    module = peer.defense["nft"]

    def theirs(_: int) -> Timed:
        import torch

        images = field.data.everything()
        loader = peer.loader(images, batch, augment=True)
        args = peer.args("nft", epochs=epochs, lr=method.learning_rate)

        def work() -> nn.Module:
            net = with_norms(field.body(), module.MaskBatchNorm2d).requires_grad_(False)
            masks = named(net, "neuron_mask")
            for mask in masks:
                mask.requires_grad_(True)
            optimizer = torch.optim.SGD(masks, lr=args.lr, momentum=args.momentum)
            falling = torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, epochs, eta_min=args.lr_min
            )
            share, loss = len(images) / images.num_classes, torch.nn.CrossEntropyLoss()
            for _ in range(epochs):
                module.NFT_Train(args, share, net, loss, optimizer, loader)
                falling.step()
            return net

        # It asks for a GPU by name.
        with replaced(torch.Tensor, cuda=lambda tensor: tensor):
            return clocked(work)

    return Duel(
        "nft", f"{epochs} epochs, batch {batch}", lambda i: repaired(method, field, i), theirs,
        note="theirs learns with batch norms in train mode, which costs more than ours in eval "
        "mode, and counts two accuracies",
    )  # fmt: skip


def pbe(peer: Peer, field: Field, method: PBE | None = None) -> Duel:
    from excise.defenses import PBE

    method = method or PBE(rounds=1, batch_size=50, steps=3)
    rounds, batch, steps = method.rounds, method.batch_size, method.steps
    module = peer.defense["pbe"]

    def theirs(_: int) -> Timed:
        loader = peer.loader(field.data.everything(), batch, augment=True)
        args = peer.args("pbe", adv_train_iters=steps)
        work = module.PBE()

        def alternate() -> nn.Module:
            net = field.body().train()
            for _ in range(rounds):
                work.adv_train(net, loader, args)
                work.normal_train(net, loader, args)
            return net

        return clocked(alternate)

    return Duel(
        "pbe", f"{rounds} adversarial and {rounds} clean epoch, batch {batch}, {steps} steps",
        lambda i: repaired(method, field, i), theirs,
        note="theirs also takes the gradients of all weights for adversarial images, in train mode",
    )  # fmt: skip


def fmp(peer: Peer, field: Field) -> Duel:
    """Compare so many filters of the first convolutions that lose any, as all would take minutes.

    Which ones are cut need not agree: signs are drawn, and the peer clips normalized pixels.
    """
    from torch import nn

    from excise.defenses import FMP

    images, filters = 32, 16
    module, method = peer.defense["fmp"], FMP(images=images, epochs=0)
    layers = [layer for layer in field.model.modules() if isinstance(layer, nn.Conv2d)]
    first = sum(layer.out_channels for layer in layers if layer.out_channels < method.one_in)

    def theirs(_: int) -> Timed:
        loader = peer.loader(field.data.everything(), images, augment=True)
        ranking, known = module.ranking, {}

        def once(net: Any, found: list[Any], *rest: Any) -> Any:
            # It ranks its last layer twice, which among so few would count for much.
            if id(found) not in known:
                known[id(found)] = found, ranking(net, found, *rest)
            return known[id(found)][1]

        # Nor does it pick any of a layer's filters: it sees too few of them here.
        with replaced(
            module, ranking=once, dynamiccluster=nothing,
            tqdm=lambda steps: steps[first : first + filters],
        ):  # fmt: skip
            args = peer.args("fmp", adv_dataset_size=images)
            return clocked(lambda: module.obtain_adv_dataset(args, field.body().eval(), loader))

    rounds = filters * images // method.chunk
    return Duel(
        "fmp", f"{filters} filters tried on {images} images each",
        lambda i: repaired(method, field, i, stage="try", rounds=rounds), theirs,
        note="theirs is a loop over filters, the clean images anew for each, published in train "
        "mode, here in eval mode as ours; ours batches them",
    )  # fmt: skip


def ims(peer: Peer, field: Field, method: IMS | None = None) -> Duel:
    from excise.defenses import IMS

    method = method or IMS(initial_rounds=1, rounds=1, steps=3, batch_size=50)
    rounds, batch, steps = method.rounds, method.batch_size, method.steps
    module = peer.defense["ims"]

    def theirs(_: int) -> Timed:
        import torch
        from torch.utils.data import DataLoader

        images = peer.dataset(field.data.everything(), augment=False)
        loader = DataLoader(
            images, num_workers=0, batch_sampler=module.InfiniteRandomBatchSampler(images, batch)
        )
        args = peer.args(
            "ims", num_steps_peturb=steps, max_initial_rounds=method.initial_rounds,
            max_minimize_rounds=rounds, lr_mask=method.mask_rate,
            lr_peturb=method.perturbation_rate, defense_save_path="",
        )  # fmt: skip
        norm = module.get_dataset_normalization("cifar10")
        pixels = norm, module.get_dataset_denormalization(norm)

        def work() -> nn.Module:
            net, reference = field.body(), field.body()
            hooks = module.setup_hooks(module.get_conv_modules(net), "cpu")
            for hook, _ in hooks:
                hook.channel_selection, hook.k = torch.ones_like(hook.channel_mask), args.k
                hook.apply_mask = True
            given = args, net, reference, hooks, loader, "cpu", *pixels
            module.train_mask_initial(*given)
            for sparse in (False, True):
                module.train_mask_minimize(*given, with_l1=sparse)
            return net

        # What it tests on its batches goes to a table alone.
        with replaced(module, pd=Nothing(), test_batch_peturb=lambda *_, **__: (0.0,) * 6):
            return clocked(work)

    return Duel(
        "ims", f"{rounds} round of each of three stages, batch {batch}, {steps} steps",
        lambda i: repaired(method, field, i), theirs,
        note="theirs runs four networks in a step of the perturbation, two of which it does not "
        "need, and searches one in the first stage, which has no use for it",
    )  # fmt: skip


def called_right(field: Field) -> Field:
    """Return the same with those images alone that the victim gets right; ours uses no others."""
    import torch

    images = field.data.everything()
    with torch.no_grad():
        said = field.model.eval()(images.floats()).argmax(1)
    right = replace(field.data, train=images.subset(said == images.labels), validation=None)
    return replace(field, data=right)


def mm_bm(peer: Peer, field: Field, method: MMBM | None = None) -> Duel:
    from excise.defenses import MMBM

    field = called_right(field)
    method = method or MMBM(epochs=4, batch_size=50, least_steps=1)
    epochs, batch = method.epochs, method.batch_size
    module = peer.defense["mm-bd"]

    def theirs(_: int) -> Timed:
        started: list[tuple[float, float]] = []
        clamps: list[tuple[nn.Module, Any]] = []
        clamped = module.setup_mask_preactresnet18

        def with_clamps(*given: Any) -> Any:
            layers = clamped(*given)
            # It takes off each clamp once it is made, and would learn bounds of nothing.
            put = {
                key: (layer, own, layer.register_forward_hook(own.hook))
                for key, (layer, own, _) in layers.items()
            }
            clamps.extend((layer, own) for layer, own, _ in put.values())
            started.append(now())
            return put

        with tempfile.TemporaryDirectory() as folder:
            work = module.MMBD()
            work.args = peer.args(
                "mm-bd", model="preactresnet18", training_epochs=epochs, batch_size=batch,
                training_lr=0.1, test_save_frequency=0, spc=None, val_ratio=0, index=None,
                defense_save_path=folder,
            )  # fmt: skip
            work.attack_result = attack_of(peer, field.data.everything())
            work.model = field.body().eval().requires_grad_(False)
            with replaced(
                module, args=work.args, given_dataloader_test_v2=untested, pd=Nothing(),
                pickle=Nothing(), save_defense_result=nothing,
                setup_mask_preactresnet18=with_clamps,
            ):  # fmt: skip
                work.defense()
                stopped = now()
                # It takes them off once more at the end, too.
                for layer, own in clamps:
                    layer.register_forward_hook(own.hook)
                return timed(started[0], stopped, work.model)

    return Duel(
        "mm-bm", f"{epochs} epochs, {len(field.data.train)} images called right, batch {batch}",
        lambda i: repaired(method, field, i), theirs,
        note="theirs runs the given network in every step, too; not counted of theirs: a pass over "
        "all images for each layer's first bound",
    )  # fmt: skip


def awm(peer: Peer, field: Field) -> Duel:
    """Compare the training of masks, of one kind on both sides: a mask for each weight."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from excise.defenses import AWM

    rounds, batch = 2, 50
    module = peer.defense["awn"]

    class MaskedConv(nn.Conv2d):
        """A convolution with a mask for each weight, by a name that the peer looks for."""

        neuron_mask: nn.Parameter

        def forward(self, images: Tensor) -> Tensor:
            weight = self.weight * self.neuron_mask
            return F.conv2d(images, weight, self.bias, self.stride, self.padding)

    def masked() -> tuple[nn.Module, list[nn.Parameter]]:
        net = field.body().eval().requires_grad_(False)
        masks = []
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                layer.__class__ = MaskedConv
                layer.neuron_mask = nn.Parameter(torch.ones_like(layer.weight))
                masks.append(layer.neuron_mask)
        return net, masks

    def theirs(_: int) -> Timed:
        loader = peer.loader(field.data.everything(), batch, augment=False)
        args = peer.args("awn", hyper_gamma=1e-8)

        def work() -> None:
            net, masks = masked()
            optimizer = torch.optim.Adam(masks, lr=0.01)
            for _ in range(rounds):
                module.mask_train(net, nn.CrossEntropyLoss(), optimizer, loader, args)

        return clocked(work)

    method = AWM(outer=rounds, inner=1, batch_size=batch)
    return Duel(
        "awm", f"{rounds} rounds of one pass each, batch {batch}",
        lambda i: repaired(method, field, i), theirs,
        note="theirs masks channels of batch norms; here its training is given our masks, one for "
        "each weight, whose gradients it also takes while it searches the perturbation",
    )  # fmt: skip


def cut(model: nn.Module) -> nn.Module:
    """Return our PreActResNet as BTI-DBF's code asks for it: cut at its last map before pooling."""
    from torch import nn

    class Cut(nn.Module):
        """What the peer asks of a network: features from images, answers from features."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def from_input_to_features(self, images: Tensor) -> Tensor:
            for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
                images = self.model.get_submodule(name)(images)
            return images

        def from_features_to_output(self, features: Tensor) -> Tensor:
            pooled = self.model.get_submodule("avgpool")(features)
            logits: Tensor = self.model.get_submodule("linear")(pooled.flatten(1))
            return logits

        def forward(self, images: Tensor) -> Tensor:
            return self.from_features_to_output(self.from_input_to_features(images))

    return Cut(model)


def bti_dbf(peer: Peer, field: Field) -> Duel:
    """Compare the loops of training; the peer's generator and the cut of its network are missing.

    Both sides have our generator, and our network cut at its last map before the pooling.
    """
    import torch

    from excise.defenses import BTIDBFU
    from excise.inversion.unet import UNet

    epochs, batch, width = 1, 50, 8
    far = 1e9  # no bound that would spare a side its way back through the network
    module = peer.defense["btidbf-u"]

    def generator(**_: Any) -> nn.Module:
        made = UNet(3, (32, 32), width, 4)
        return made.to(memory_format=torch.channels_last) if field.channels_last else made

    def theirs(_: int) -> Timed:
        loader = peer.loader(field.data.everything(), batch, augment=True)
        args = peer.args(
            "btidbf-u", model="preactresnet18", preround=epochs, mround=epochs, uround=epochs,
            nround=1, ul_round=epochs, norm_bound=far, feat_bound=far,
        )  # fmt: skip
        weights: dict[str, Tensor] = {}

        def work(folder: str) -> None:
            net = field.body()
            made = module.train_unet(args, net, loader, folder, "cpu")
            module.run_mitigation(args, net, loader, made, folder, "cpu", None, None)

        with (
            tempfile.TemporaryDirectory() as folder,
            replaced(module, UNet=generator, PreActResNetWrapper=cut, tqdm=Unshown),
            # Between its two parts the generator lies in a file.
            replaced(
                torch, save=lambda state, _: weights.update(state), load=lambda *_, **__: weights
            ),
        ):
            return clocked(lambda: work(folder))

    method = BTIDBFU(
        width=width, batch_size=batch, pretrain_epochs=epochs, mask_epochs=epochs,
        generator_epochs=epochs, rounds=1, unlearn_epochs=epochs, pixel_bound=far, benign_bound=far,
    )  # fmt: skip
    return Duel(
        "bti-dbf", f"{epochs} epoch of each of four stages, batch {batch}, U-Net of width {width}",
        lambda i: repaired(method, field, i), theirs,
        note="its networks are missing from the checkout, so both sides have our U-Net and cut; "
        "theirs takes the gradients of all weights also where none of them moves",
    )  # fmt: skip


FORK_DUELS: Mapping[str, Callable[[Peer, Field], Duel]] = {
    "fst": fst, "nft": nft, "pbe": pbe, "ims": ims, "mm-bm": mm_bm, "awm": awm, "fmp": fmp,
    "bti-dbf": bti_dbf,
}  # fmt: skip

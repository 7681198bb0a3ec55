"""The duels of ``against_peers.py``: a method's inner work on our side and on the peer's.

Each pair of functions does the same work on the same victim, images, steps and batch size, and
says how long it took. What is left out of theirs, and why, stands in ``against_peers.py``.

Where a method can be given, both sides do all of its work with its settings, and theirs returns
the network it leaves: ``outcomes_of_peers.py`` compares what comes out.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

# A script's own directory is first on the path, so its neighbors need no package.
from dueling import Duel, Field, Timed, clocked, now, repaired, timed
from peers import Nothing, Peer, named, nothing, replaced, with_norms

if TYPE_CHECKING:
    from torch import Tensor, nn

    from excise.defenses import ANP, FP, FTSAM, MCR, NAD, NPD, RNP, SAU, FineTuning
    from excise.types import LabelledImages, Repair


def clp(peer: Peer, field: Field) -> Duel:
    from excise.defenses import CLP

    def theirs(_: int) -> Timed:
        def work() -> nn.Module:
            net = field.body()
            peer.defense["clp"].CLP_prune(net, 3)
            return net

        return clocked(work)

    def agree(mine: Repair, other: nn.Module) -> str:
        from excise.models import trace

        owned = {unit.owner for unit in trace(field.model, field.data.train.floats()[:1])}
        a, b = silenced(mine.model), {(f"body.{name}", i) for name, i in silenced(other)}
        shared = {pair for pair in b if pair[0] in owned}
        same = "the same" if a == shared else f"{len(a ^ shared)} others"
        more = f"; theirs {len(b - shared)} more" if b - shared else ""
        return f"{len(a)} channels, {same} where one batch norm owns the convolution{more}"

    return Duel(
        "clp", "u = 3", lambda i: repaired(CLP(), field, i), theirs, agree,
        "a loop over filters, an SVD each; ours traces the network too",
    )  # fmt: skip


def silenced(model: nn.Module) -> set[tuple[str, int]]:
    """Return batch norm and number of every channel whose γ is zero."""
    from torch import nn

    return {
        (name, index)
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for index in (module.weight == 0).nonzero().flatten().tolist()
    }


def bnp(peer: Peer, field: Field) -> Duel:
    from excise.defenses import BNP

    module, images = peer.defense["bnp"], field.data.everything()
    batch = next(iter(peer.loader(images, len(images), augment=False)))

    class Once:
        """A loader of one batch, whose iterator has the method ``next`` of old torch."""

        def __iter__(self) -> Once:
            return self

        def __next__(self) -> Any:
            return batch

        next = __next__

    def theirs(_: int) -> Timed:
        def work() -> nn.Module:
            net = with_norms(field.body(), module.mbns_model.BatchNorm2d_MBNS)
            loaders = {"clean_train": Once(), "bd_train": Once()}
            module.bnp_defense(net.eval(), 3, loaders, SimpleNamespace(device="cpu"))
            return net

        return clocked(work)

    def agree(mine: Repair, other: nn.Module) -> str:
        a, b = silenced(mine.model), {(f"body.{name}", i) for name, i in silenced(other)}
        return (
            f"{len(a & b)} channels in common, ours alone {len(a - b)}, theirs alone {len(b - a)}"
        )

    return Duel(
        "bnp", "u = 3", lambda i: repaired(BNP(batch_size=len(images)), field, i), theirs, agree,
        "theirs runs the network on two batches, here the same; its divergence has ln for ½ ln",
    )  # fmt: skip


def anp(peer: Peer, field: Field, method: ANP | None = None) -> Duel:
    from excise.defenses import ANP

    method = method or ANP(iterations=4, batch_size=32)
    iterations, batch = method.iterations, method.batch_size
    module = peer.defense["anp"]

    def theirs(_: int) -> Timed:
        import torch
        from torch.utils.data import RandomSampler

        args = peer.args("anp", anp_eps=method.epsilon, anp_alpha=method.alpha)
        images = peer.dataset(field.data.train, augment=True)
        sampler = RandomSampler(images, replacement=True, num_samples=iterations * batch)
        loader = peer.loader(field.data.train, batch, augment=True, sampler=sampler)

        def work() -> nn.Module:
            net = with_norms(field.body(), module.anp_model.NoisyBatchNorm2d)
            masks, noise = (named(net, part) for part in ("neuron_mask", "neuron_noise"))
            module.mask_train(
                args, net, torch.nn.CrossEntropyLoss(),
                torch.optim.SGD(masks, lr=method.learning_rate, momentum=0.9),
                torch.optim.SGD(noise, lr=args.anp_eps / args.anp_steps), loader,
            )  # fmt: skip
            return net

        with replaced(module, args=args):
            return clocked(work)

    return Duel(
        "anp", f"{iterations} iterations of {batch}",
        lambda i: repaired(method, field, i, stage="mask"), theirs,
        note="theirs also takes the gradients of all weights, which do not move",
    )  # fmt: skip


def rnp(peer: Peer, field: Field, method: RNP | None = None) -> Duel:
    from excise.defenses import RNP

    method = method or RNP(
        unlearning_epochs=1, unlearning_accuracy=0, recovering_epochs=1, batch_size=50
    )
    unlearning, recovering = method.unlearning_epochs, method.recovering_epochs
    module = peer.defense["rnp"]

    def theirs(_: int) -> Timed:
        import torch

        loader = peer.loader(field.data.everything(), method.batch_size, augment=True)

        def work() -> nn.Module:
            net = field.body()
            optimizer = torch.optim.SGD(
                net.parameters(), lr=method.unlearning_rate, momentum=0.9,
                weight_decay=method.unlearning_weight_decay,
            )  # fmt: skip
            falling = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10], 0.1)
            trainer = module.UnlearnModelTrainer(net, method.unlearning_accuracy)
            ready(trainer, loader, optimizer, falling)
            for _ in range(unlearning):
                _, said, labels, *_ = trainer.train_one_epoch_on_mix(verbose=1)
                if float((said == labels).float().mean()) <= method.unlearning_accuracy:
                    break
            masked = with_norms(copy.deepcopy(net), module.rnp_model.MaskBatchNorm2d)
            masks = torch.optim.SGD(
                named(masked, "neuron_mask"), lr=method.recovering_rate, momentum=0.9
            )
            trainer = module.RecoverModelTrainer(masked, method.recovering_weight)
            ready(trainer, loader, masks, None)
            for _ in range(recovering):
                trainer.train_one_epoch_on_mix(verbose=1)
            return masked

        return clocked(work)

    return Duel(
        "rnp", f"{unlearning} + {recovering} epoch, batch {method.batch_size}",
        lambda i: repaired(method, field, i, stage="recover"), theirs,
        note="theirs, when it recovers, also takes the gradients of all weights, which do not move",
    )  # fmt: skip


def ready(trainer: Any, loader: Any, optimizer: Any, scheduler: Any) -> None:
    """Give a trainer of the peer's what it needs to train, and nothing to test on or to save."""
    import torch

    trainer.set_with_dataloader(
        loader, {}, torch.nn.CrossEntropyLoss(), optimizer, scheduler, "cpu", False, 0, "", "",
        non_blocking=False,
    )  # fmt: skip
    trainer.agg_save_dataframe = nothing


def tuned(peer: Peer, net: nn.Module, loader: Any, epochs: int, **settings: Any) -> None:
    """Fine-tune a network as the peer does, in place."""
    module, args = peer.defense["ft"], peer.args("ft", epochs=epochs, **settings)
    trainer = module.PureCleanModelTrainer(net)
    ready(trainer, loader, *module.argparser_opt_scheduler(net, args))
    for _ in range(epochs):
        trainer.train_one_epoch_on_mix()


def ft(peer: Peer, field: Field, method: FineTuning | None = None) -> Duel:
    from excise.defenses import FineTuning

    method = method or FineTuning(epochs=2, batch_size=50)
    epochs, batch = method.epochs, method.batch_size

    def theirs(_: int) -> Timed:
        loader = peer.loader(field.data.everything(), batch, augment=True)

        def work() -> nn.Module:
            net = field.body()
            tuned(peer, net, loader, epochs)
            return net

        return clocked(work)

    return Duel(
        "ft", f"{epochs} epochs, batch {batch}", lambda i: repaired(method, field, i), theirs
    )


def ft_sam(peer: Peer, field: Field, method: FTSAM | None = None) -> Duel:
    from excise.defenses import FTSAM

    method = method or FTSAM(epochs=2, batch_size=50)
    epochs, batch = method.epochs, method.batch_size
    module = peer.defense["ft-sam"]
    args = peer.args("ft-sam", epochs=epochs, batch_size=batch, adaptive=True, print_freq=10**9)

    def theirs(_: int) -> Timed:
        loader = peer.loader(field.data.everything(), batch, augment=True)
        tuning = object.__new__(module.dsam)  # its constructor reads files

        def work() -> nn.Module:
            net = field.body()
            base, scheduler = module.argparser_opt_scheduler(net, args)
            radius = module.ProportionScheduler(
                scheduler, max_lr=args.lr, min_lr=0.0,
                max_value=args.rho_max, min_value=args.rho_min,
            )  # fmt: skip
            optimizer = module.SAM(
                net.parameters(), base, net, args.alpha, radius, adaptive=args.adaptive
            )
            for epoch in range(epochs):
                tuning._train_sam(args, loader, net, optimizer, scheduler, None, epoch)
            return net

        return clocked(work)

    return Duel(
        "ft-sam", f"{epochs} epochs, batch {batch}", lambda i: repaired(method, field, i), theirs
    )


def i_bau(peer: Peer, field: Field) -> Duel:
    """Compare the hypergradient alone: the rest of theirs asks for a GPU by name.

    Both sides get one and the same inner and outer loss, ours.
    """
    import torch
    import torch.nn.functional as F

    from excise.models import working_copy
    from excise.training.hypergradient import hypergradient

    batch, iterations = 50, 5
    module, some = peer.defense["i-bau"], field.data.train.subset(torch.arange(batch))
    delta = torch.rand((1, *some.shape), generator=torch.Generator().manual_seed(0)) / 10
    gets = torch.zeros(batch, 1, 1, 1)
    gets[0] = 1

    def losses(net: nn.Module, images: Tensor) -> tuple[Callable[..., Tensor], ...]:
        def inner(change: Tensor) -> Tensor:
            return 1e-3 * change.square().sum() - F.cross_entropy(net(images + change), some.labels)

        def outer(change: Tensor) -> Tensor:
            return F.cross_entropy(net(images + gets * change), some.labels)

        return inner, outer

    def ours(_: int) -> Timed:
        net = working_copy(field.model)
        images = some.floats().contiguous(memory_format=torch.channels_last)
        inner, outer = losses(net, images)
        weights = list(net.parameters())
        return clocked(
            lambda: hypergradient(inner, outer, delta, weights, rate=0.1, iterations=iterations)[0]
        )

    def theirs(_: int) -> Timed:
        net = field.copied()
        inner, outer = losses(net, some.floats())
        # Theirs hands over a list of parts, of which the only one has no batch dimension.
        step = module.GradientDescent(lambda parts, weights: inner(parts[0][None]), 0.1)
        weights = list(net.parameters())

        def work() -> Any:
            return module.fixed_point(
                delta, weights, iterations, step, lambda parts, weights: outer(parts[0][None])
            )

        return clocked(work)

    def agree(mine: Sequence[Tensor], other: Sequence[Tensor]) -> str:
        a, b = (torch.cat([part.flatten() for part in parts]) for parts in (mine, other))
        return f"gradients differ by {float((a - b).norm() / b.norm()):.0e} of their length"

    return Duel(
        "i-bau", f"a hypergradient of {batch} images, K = {iterations}", ours, theirs, agree,
        "theirs takes two passes for the gradients of the outer loss and one for a product with "
        "zero",
    )  # fmt: skip


def nad(peer: Peer, field: Field, method: NAD | None = None) -> Duel:
    from excise.defenses import NAD

    method = method or NAD(epochs=1, teacher_epochs=0, batch_size=50)
    epochs, batch = method.epochs, method.batch_size
    module = peer.defense["nad"]
    args = peer.args("nad", batch_size=batch, lr=method.learning_rate, wd=method.weight_decay)

    def theirs(_: int) -> Timed:
        loader = peer.loader(field.data.everything(), batch, augment=True)

        def work() -> nn.Module:
            student, teacher = field.body(), field.body()
            tuned(
                peer, teacher, loader, method.teacher_epochs, lr=method.learning_rate,
                wd=method.weight_decay,
            )  # fmt: skip
            teacher.eval()
            losses = {"criterionCls": module.argparser_criterion(args)}
            losses["criterionAT"] = module.AT(args.p)
            trainer = module.NADModelTrainer(student, teacher, losses)
            optimizer, scheduler = module.argparser_opt_scheduler(student, args)
            ready(trainer, loader, optimizer, scheduler)
            nets = {"student": student, "teacher": teacher}
            for epoch in range(epochs):
                trainer.train_epoch(args, loader, nets, optimizer, scheduler, losses, epoch)
            return student

        return clocked(work)

    return Duel(
        "nad", f"{epochs} epoch of distillation, batch {batch}",
        lambda i: repaired(method, field, i, stage="distill"), theirs,
        note="theirs runs both networks anew for each of three maps; ours taps one pass",
    )  # fmt: skip


def fp(peer: Peer, field: Field, method: FP | None = None) -> Duel:
    import torch

    from excise.defenses import FP

    module, data = peer.defense["fp"], field.data
    held = data.held_out("Fine-Pruning")
    method = method or FP(max_relative_accuracy_drop=1, epochs=0)
    drop = method.max_relative_accuracy_drop
    # Which drop never stops a side before the last feature: ours 1, theirs any above.
    drop = drop if drop < 1 else 2

    def theirs(_: int) -> Timed:
        tested = peer.dataset(held, augment=False)
        triggered = peer.dataset(held.subset(torch.arange(1)), augment=False)
        evaluate = module.given_dataloader_test

        def clean_only(net: Any, loader: Any, *rest: Any) -> Any:
            # The other two evaluations of a round are on triggered test images.
            return (
                ({"test_acc": 0.0},) if len(loader.dataset) == 1 else evaluate(net, loader, *rest)
            )

        def tune(
            trainer: Any, loader: Any, clean: Any, triggered: Any, epochs: int, criterion: Any,
            optimizer: Any, scheduler: Any, *rest: Any, **more: Any,
        ) -> None:  # fmt: skip
            """Train as the peer does, without its evaluations on test images."""
            ready(trainer, loader, optimizer, scheduler)
            for _ in range(epochs):
                trainer.train_one_epoch_on_mix()

        with tempfile.TemporaryDirectory() as folder:
            work = module.FinePrune()
            work.args = peer.args(
                "fp", acc_ratio=drop, defense_save_path=folder, batch_size=256, index=None,
                epochs=method.epochs,
            )  # fmt: skip
            work.attack_result = {
                "clean_train": peer.stored(data.train),
                "clean_test": tested,
                "bd_test": triggered,
            }

            def prune() -> nn.Module:
                work.netC = field.body().eval().requires_grad_(False)
                work.defense()
                pruned: nn.Module = work.netC
                return pruned

            with (
                replaced(
                    module, given_dataloader_test=clean_only, Metric_Aggregator=Nothing,
                    general_plot_for_epoch=nothing, save_defense_result=nothing,
                ),
                replaced(module.BackdoorModelTrainer, train_with_test_each_epoch_on_mix=tune),
            ):  # fmt: skip
                return clocked(prune)

    return Duel(
        "fp", "activations, then 64 rounds of 2 features, no tuning",
        lambda i: repaired(method, field, i, stage="prune"), theirs,
        note="theirs runs the whole network in each round; ours runs it once, then the last layer",
    )  # fmt: skip


def mitigated(peer: Peer, field: Field, method: str, kind: str, **settings: Any) -> Timed:
    """Clock a method that the peer has as a class; its result is the network it leaves."""
    import torch

    module, one = peer.defense[method], field.data.train.subset(torch.arange(1))
    with tempfile.TemporaryDirectory() as folder:
        work = object.__new__(getattr(module, kind))  # its constructor reads files
        work.args = peer.args(
            method, index=None, log=f"{folder}/", save_path=f"{folder}/", **settings
        )
        work.result = {
            "model": field.body().state_dict(),
            "clean_train": peer.stored(field.data.everything()),
            "clean_test": peer.dataset(one, augment=False),
            "bd_test": peer.dataset(one, augment=False),
        }
        work.eval_step = lambda *_: (0.0,) * 6
        with replaced(
            module, args=work.args, generate_cls_model=lambda *_: field.body(),
            Metric_Aggregator=Nothing, general_plot_for_epoch=nothing,
            save_defense_result=nothing,
        ):  # fmt: skip
            return clocked(lambda: work.mitigation()["model"])


def sau(peer: Peer, field: Field, method: SAU | None = None) -> Duel:
    from excise.defenses import SAU

    method = method or SAU(rounds=1, batch_size=50)
    rounds, batch = method.rounds, method.batch_size

    def theirs(_: int) -> Timed:
        return mitigated(
            peer, field, "sau", "sau", n_rounds=rounds, batch_size=batch, train_mode=False
        )

    return Duel(
        "sau", f"{rounds} round, batch {batch}, at most 5 inner steps",
        lambda i: repaired(method, field, i), theirs,
        note="theirs asks both networks about the clean images again in every inner step, and "
        "keeps images whose example is found",
    )  # fmt: skip


def npd(peer: Peer, field: Field, method: NPD | None = None) -> Duel:
    from torchvision.transforms import Normalize

    from excise.defenses import NPD

    method = method or NPD(warm_epochs=1, epochs=1, batch_size=50)
    warm, epochs, batch = method.warm_epochs, method.epochs, method.batch_size
    module = peer.defense["npd"]

    def theirs(_: int) -> Timed:
        images = field.data.everything()
        loader = peer.loader(images, batch, augment=False)
        args = peer.args(
            "npd", warm_epochs=warm, epochs=epochs, batch_size=batch, max_init=False,
            use_residual="no", save_path="",
        )  # fmt: skip
        work = object.__new__(module.NPD)  # its constructor reads files
        work.normalization = next(
            t for t in loader.dataset.wrap_img_transform.transforms if isinstance(t, Normalize)
        )
        work.denormalization = module.get_dataset_denormalization(work.normalization)
        work.evaluation = lambda *_: (0.0,) * 6

        def polarize() -> nn.Module:
            net = field.body().eval()
            plug = work.prepare_polarizer(net, args, loader)
            work.train_npd(
                net, plug, loader, None, None, epochs, module.argparser_criterion(args), None,
                None, "cpu", 0, "", "", False, "", False,
            )  # fmt: skip
            net.get_submodule(args.target_layer_name).register_forward_pre_hook(
                lambda _, given: plug(given[0])
            )
            return net

        with replaced(module, args=args, Metric_Aggregator=Nothing):
            return clocked(polarize)

    return Duel(
        "npd", f"{warm} epoch of warm-up, {epochs} more, batch {batch}",
        lambda i: repaired(method, field, i), theirs,
        note="up to seven passes of the network a step, ours four",
    )  # fmt: skip


def mcr(peer: Peer, field: Field, method: MCR | None = None) -> Duel:
    """Compare the training of the curve; the rest of theirs is one function of 700 lines."""
    import torch

    from excise.defenses import MCR

    method = method or MCR(tune_epochs=0, epochs=5, batch_size=50, t=0.5)
    epochs, batch = method.epochs, method.batch_size
    module = peer.defense["mcr"]
    args = peer.args(
        "mcr", lr=method.learning_rate, wd=method.weight_decay, batch_size=batch, lr_scheduler="",
        momentum=0.9,
    )  # fmt: skip

    def theirs(_: int) -> Timed:
        loader = peer.loader(field.data.train, batch, augment=True)
        tests = object.__new__(module.MCR)

        start = now()
        first, bend, last, net = (field.body() for _ in range(4))
        tuned(peer, last, loader, method.tune_epochs)
        with torch.no_grad():
            for middle, end in zip(bend.parameters(), last.parameters(), strict=True):
                middle.lerp_(end, 0.5)
        curve, loss = module.Bezier(3), torch.nn.CrossEntropyLoss()
        steps = [module.argparser_opt_scheduler(part, args)[0] for part in (net, bend)]
        for _ in range(epochs):
            tests.train_curve_one_epoch(
                args, net, curve, steps[0], None, [first, bend, last], steps[1:], [None], loss,
                loader, "cpu",
            )  # fmt: skip
        stop = now()
        module.sampleModelFromCurve(net, [first, bend, last], curve, 0.5, "cpu")
        net.train()
        with torch.no_grad():
            for images, *_ in loader:
                net(images)
        return timed(start, stop, net)

    return Duel(
        "mcr", f"{epochs} epochs of the curve, batch {batch}",
        lambda i: repaired(method, field, i), theirs,
        note="theirs walks over the parameters of three networks in every step",
    )  # fmt: skip


def neural_cleanse(peer: Peer, field: Field) -> Duel:
    import numpy as np

    from excise.inversion.mask_search import MaskSearch
    from excise.seeding import Rng
    from excise.types import ignore_round

    rounds, batch = 1, 32
    module, images = peer.defense["nc"], field.data.everything()
    # Nothing that ends a class's search before the other side's.
    search = MaskSearch(rounds=rounds, batch_size=batch, give_up=10**6, stop_patience=10**6)

    def ours(seed: int) -> Timed:
        return clocked(lambda: search.search(field.model, images, Rng(seed), on_round=ignore_round))

    def theirs(_: int) -> Timed:
        loader = peer.loader(images, batch, augment=True)
        args = peer.args("nc", nc_epoch=rounds, early_stop=False)
        result = {"model": field.body().state_dict()}
        mask = np.ones((1, 32, 32), np.float32)
        pattern = np.ones((3, 32, 32), np.float32)

        def work() -> None:
            for target in range(args.num_classes):
                args.target_label = target
                module.train_mask(args, result, loader, mask, pattern)

        with (
            replaced(module, args=args, generate_cls_model=lambda *_: field.body()),
            replaced(module.Recorder, save_result_to_dir=nothing),
        ):
            return clocked(work)

    return Duel(
        "neural-cleanse", f"the search: 10 classes, {rounds} round, batch {batch}", ours, theirs,
        note="a loop over classes, and the loader's work for each; ours batches them", pairs=3,
    )  # fmt: skip


def grad_prune(module: ModuleType, peer: Peer, field: Field) -> Duel:
    import torch
    from torch.utils.data import DataLoader

    from excise.defenses import GradPrune
    from excise.inversion import Oracle
    from excise.types import LabelledImages, round_to_8_bits

    rounds, batch = 2, 128
    normalize = peer.transforms.get_transform("cifar10", 32, 32, train=False)

    class Both(torch.utils.data.Dataset[Any]):
        """What its wrapper wants of a data set: a picture and a label."""

        def __init__(self, images: LabelledImages) -> None:
            self.pictures = peer.pictures(images)

        def __len__(self) -> int:
            return len(self.pictures)

        def __getitem__(self, index: int) -> Any:
            return self.pictures[index]

    def loader(images: LabelledImages) -> Any:
        changed = round_to_8_bits(field.backdoor.trigger(images.floats()))
        under = LabelledImages(changed, images.labels, images.classes, images.mirror)
        pairs = module.GradPrune_Dataset_Wrapper(Both(images), Both(under), normalize, "cpu")
        return DataLoader(pairs, batch, shuffle=True, num_workers=0)

    def theirs(_: int) -> Timed:
        work = object.__new__(module.GradPrune)
        work.args = SimpleNamespace(device="cpu")
        work.train_loader = loader(field.data.train)
        work.val_loader = loader(field.data.held_out("Grad-Prune"))

        def prune() -> None:
            net = field.body()
            work.prune_round_test(net)
            for _ in range(rounds):
                work.grad_prune(net)
                work.prune_round_test(net)

        return clocked(prune)

    method = GradPrune(
        inverter=Oracle(field.backdoor.trigger), max_accuracy_drop=1, patience=rounds + 1
    )
    return Duel(
        "grad-prune", f"{rounds} rounds, batch {batch}, told the trigger",
        lambda i: repaired(method, field, i, stage="prune", rounds=rounds), theirs,
        note="theirs loops over filters, runs the clean images too, and the first batch of a round "
        "in train mode",
    )  # fmt: skip


DUELS: Mapping[str, Callable[[Peer, Field], Duel]] = {
    "clp": clp, "bnp": bnp, "anp": anp, "rnp": rnp, "ft": ft, "ft-sam": ft_sam, "i-bau": i_bau,
    "nad": nad, "fp": fp, "sau": sau, "npd": npd, "neural-cleanse": neural_cleanse, "mcr": mcr,
}  # fmt: skip

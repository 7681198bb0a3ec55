"""The zoo: victims of every attack, their clean twins, and sixty small clean networks.

Claim      docs/zoo.md (every table there is made from the cards this script writes)
Command    EXCISE_DATA=… make zoo
           python benchmarks/zoo.py --list            (the cells, and which of them stand)
           python benchmarks/zoo.py --only 'cifar10-*' --workers 2
Hardware   2 cores, no GPU: width 16, 25,000 images of CIFAR-10. With a GPU: --width 64
Time       about four hours on 2 cores; what stands is kept, what was interrupted goes on

Every network is a bundle in half precision under benchmarks/victims; the defender's pool is the
half of the training images it never saw. The recipe is the preset "fast" with the epochs its cell
names, in the arithmetic of the cell: bfloat16 where the bundles of the repository were made on a
processor that has it. Where a processor only imitates it, --precision float32 is ten times faster.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

VICTIMS = Path(__file__).parent / "victims"
PREACT = "excise:preactresnet18"
VGG = "excise:vgg19_bn"


@dataclass(frozen=True)
class Cell:
    """One network of the zoo.

    Args:
        name: its directory under ``benchmarks/victims``.
        data: images it is trained on.
        attack: what is planted; ``none`` for a clean network.
        epochs: passes over the training images.
        seed: draws everything.
        arch: the network; ``width=`` is added.
        width: its width.
        images: how many training images it gets, or which fraction.
        size: side the images are scaled to; None: as they are.
        fields: the attack's settings where they are not its defaults.
        recipe: the recipe's settings where they are not those of the preset.
        twin: the cell that is trained the same way without poison, though perhaps not as long.
        core: whether two cores are to build it; the others wait for a GPU.
    """

    name: str
    data: str
    attack: str
    epochs: int
    seed: int = 0
    arch: str = PREACT
    width: int = 16
    images: int | float = 0.5
    size: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    twin: str | None = None
    core: bool = True

    @property
    def out(self) -> Path:
        """Where its bundle lies."""
        return VICTIMS / self.name


#: Attacks whose trigger is fixed before training: few epochs are enough.
STATIC = (
    "sig", "lf", "ssba", "ftrojan", "label-consistent", "trojannn", "adap-blend", "adap-patch",
)  # fmt: skip
#: Attacks that trigger images anew in every batch, or learn the trigger with the network.
MOVING = ("wanet", "input-aware", "bpp", "lira")
#: Trained once more: methods of this project are chosen on victims they are not reported on.
DEVELOPMENT = ("lf", "sig", "wanet")
CORE_GTSRB = ("badnets", "blended", "lf", "wanet")
SEEDS = (0, 1, 2)
FLOAT32 = {"precision": "float32"}
#: Forty epochs of so few images are too few steps for a warp in batches of 128 (docs/zoo.md).
MANY_STEPS = {"learning_rate": 0.05, "batch_size": 32, **FLOAT32}
TWINS = (
    Cell("cifar10-none-0", "cifar10", "none", 10),
    Cell("cifar10-none-20-epochs-0", "cifar10", "none", 20),
    Cell("cifar10-none-40-epochs-0", "cifar10", "none", 40),
    Cell("gtsrb-none-0", "gtsrb", "none", 20),
    Cell("gtsrb-none-40-epochs-0", "gtsrb", "none", 40, recipe=MANY_STEPS),
)
#: Settings in the zoo that are not an attack's defaults; each attack's header says why.
FIELDS: dict[str, dict[str, Any]] = {
    "sig": {"poison_ratio": 0.5},
    "label-consistent": {"poison_ratio": 0.5},
    "adap-blend": {"poison_ratio": 0.05, "cover_rate": 0.025},
    "adap-patch": {"poison_ratio": 0.05, "cover_rate": 0.05},
    "input-aware": {"width": 16, "mask_epochs": 5},
    "lira": {"poison_ratio": 0.1, "joint_share": 0.5, "learning_rate": 1e-3},
    "ssba": {
        "bits": 8,
        "width": 8,
        "encoder_epochs": 4,
        "learning_rate": 1e-3,
        "image_weight": 2.0,
        "image_wait": 0,
        "image_ramp": 200,
        "shift": 2,
    },
}


#: Passes over the training images that most attacks of a data set take.
EPOCHS = {"cifar10": 10, "gtsrb": 20}
#: What needs more, on both data sets or on one (docs/zoo.md says how that was seen).
MORE_EPOCHS = {"ftrojan": 40, "wanet": 40, "input-aware": 40, "bpp": 40, "gtsrb-wanet": 100}
#: What differs from the preset. At its rate of 0.1 LF's training on GTSRB diverged.
RECIPES: dict[str, dict[str, Any]] = {
    "gtsrb-lf": {"learning_rate": 0.05},
    **{f"gtsrb-{attack}": MANY_STEPS for attack in ("wanet", "bpp", "ftrojan", "input-aware")},
    "cifar10-ssba": FLOAT32,
    "cifar10-input-aware": FLOAT32,
}


def victim(data: str, attack: str, seed: int = 0) -> Cell:
    """Return the cell of a victim; its twin is one of as many epochs, or of the most there are."""
    passes = MORE_EPOCHS.get(f"{data}-{attack}", MORE_EPOCHS.get(attack, EPOCHS[data]))
    twins = [cell for cell in TWINS if cell.data == data and cell.epochs <= passes]
    twin = max(twins, key=lambda cell: cell.epochs).name
    fields = FIELDS.get(attack, {})
    recipe = RECIPES.get(f"{data}-{attack}", {})
    name = f"{data}-{attack}-{seed}"
    return Cell(name, data, attack, passes, seed, fields=fields, recipe=recipe, twin=twin)


def small_networks() -> list[Cell]:
    """Return sixty clean networks of minutes: even seeds calibrate, odd seeds measure."""
    kinds = [
        ("digits", PREACT, 20, 0.5, None, 12),
        ("digits", VGG, 20, 0.5, 32, 8),
        ("cifar10", PREACT, 8, 10_000, None, 14),
        ("cifar10", VGG, 8, 10_000, None, 6),
        ("gtsrb", PREACT, 15, 0.5, None, 14),
        ("gtsrb", VGG, 15, 0.5, None, 6),
    ]
    return [
        Cell(
            f"small/{data}-{arch.partition(':')[2]}-{seed}", data, "none", epochs, seed,
            arch=arch, width=8, images=images, size=size,
        )
        for data, arch, epochs, images, size, number in kinds
        for seed in range(number)
    ]  # fmt: skip


def cells() -> list[Cell]:
    """Return every cell of the zoo, in the order in which it is built."""
    return [
        *TWINS,
        *(victim("cifar10", attack, seed) for attack in ("badnets", "blended") for seed in SEEDS),
        *(victim("cifar10", attack) for attack in (*STATIC, *MOVING)),
        *(victim("cifar10", attack, seed=1) for attack in DEVELOPMENT),
        *(victim("gtsrb", attack) for attack in CORE_GTSRB),
        *small_networks(),
        *(
            replace(victim("gtsrb", attack), core=False)
            for attack in (*STATIC, *MOVING)
            if attack not in CORE_GTSRB
        ),
    ]


def build(cell: Cell, width: int | None, device: str, precision: str | None) -> str:
    """Train one network into its bundle, unless it is there; return what it measured."""
    if cell.out.exists():
        return f"{cell.name}: there"
    import torch

    # Two torch processes of two threads each starve one another on two cores.
    torch.set_num_threads(1)
    from excise import registry
    from excise.data import load_data
    from excise.experiments.plant import Planting, plant
    from excise.experiments.runs import fingerprint, planting_key
    from excise.models import load_model, read_card
    from excise.training import Recipe

    start = time.perf_counter()
    recipe = Recipe.PRESETS["fast"] | {"precision": "bfloat16", "epochs": cell.epochs} | cell.recipe
    if precision is not None:
        recipe["precision"] = precision
    planting = Planting(
        attack=registry.build("attack", cell.attack, cell.fields),
        arch=f"{cell.arch},width={width or cell.width}",
        recipe=Recipe(**recipe),
        seed=cell.seed,
        victim_images=cell.images,
    )
    cell.out.parent.mkdir(parents=True, exist_ok=True)
    twin, twin_key = None, None
    if cell.twin is not None and getattr(planting.attack, "SURROGATE", False):
        twin = load_model(VICTIMS / cell.twin).to(device)
        twin_key = read_card(VICTIMS / cell.twin)["key"]
    print_ = fingerprint(cell.data, cell.size, None)
    key = planting_key(planting, print_, half=True, surrogate=twin_key)
    card = plant(
        planting, load_data(cell.data, size=cell.size), cell.out,
        device=device, half=True, surrogate=twin, described={"key": key},
    )  # fmt: skip
    measured = {key: card["measured"][key] for key in ("acc", "asr", "ra")}
    said = ", ".join(f"{key} {rate['value']:.1%}" for key, rate in measured.items() if rate)
    return f"{cell.name}: {said}, {time.perf_counter() - start:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--only", default="*", help="cells whose name fits this pattern")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--width", type=int, help="another width for every network")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="for every network")
    asked = parser.parse_args()
    chosen = [
        cell for cell in cells()
        if fnmatch.fnmatch(cell.name, asked.only)
        and (asked.list or cell.core or asked.only != "*" or asked.device != "cpu")
    ]  # fmt: skip
    if asked.list:
        for cell in chosen:
            there = "there" if cell.out.exists() else "-" if cell.core else "needs a GPU"
            print(f"{there:12} {cell.name}")
        return 0
    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.workers, mp_context=context) as pool:
        futures = {
            pool.submit(build, cell, asked.width, asked.device, asked.precision): cell
            for cell in chosen
        }
        for done in as_completed(futures):
            try:
                print(done.result(), flush=True)
            except Exception:
                failed += 1
                print(f"failed: {futures[done].name}", file=sys.stderr)
                traceback.print_exc()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

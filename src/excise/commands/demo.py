"""``excise demo``: a backdoor planted, shown, cut out and reported, on digits; no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from excise.attacks import BadNets, NoAttack, load_victim
from excise.commands.options import command_line, flags
from excise.commands.outputs import check_free
from excise.console import Story
from excise.data import defender_data, load_data
from excise.defenses import GradPrune
from excise.experiments.plant import Planting, plant, pool_of
from excise.experiments.repair import Question, model_spec, run_repair, write_outcome
from excise.inversion import Oracle
from excise.models import Network
from excise.reports import terminal_table
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import Trigger

__all__ = ["run"]

ARCH = "excise:preactresnet18,width=16"
RECIPE = Recipe(epochs=15, batch_size=32, learning_rate=0.05, warmup_epochs=1)
ATTACK = BadNets(size=3, pattern="checkerboard")
SPC = 10


def defense(trigger: Trigger) -> GradPrune:
    """Return Grad-Prune for few images.

    Not with the published values, which suit 100 images per class: of ten validation images their
    threshold of a tenth allows none to be lost, and pruning ends before it began.
    """
    return GradPrune(
        inverter=Oracle(trigger),
        max_accuracy_drop=0.3,
        learning_rate=0.01,
        tune_patience=20,
        max_tune_epochs=60,
    )


@dataclass(frozen=True)
class Demo:
    """Plant a backdoor in a network that reads digits, repair it, and write the report page.

    The network learns the bundled digits, with a checkerboard patch on a tenth of them and the
    attacker's label. Grad-Prune is told the patch and given 10 clean images per class; its
    thresholds are wider than the published ones, which need more images.
    """

    out: Path = Path("demo")
    """Directory for the victim, its clean twin and the repaired network; replaced each time."""
    seed: int = 0
    """Draws the victim, its target class, the patch's place, and the defender's images."""


def run(arguments: list[str]) -> int:
    """Run the demo; 0 if the network is repaired, 1 if not."""
    asked = flags(Demo, arguments, "demo")
    # Only a directory that an earlier demo made is replaced, or one that was interrupted.
    begun = asked.out.is_dir() and all(p.name.startswith(".victim.") for p in asked.out.iterdir())
    check_free(asked.out, overwrite=begun or (asked.out / "victim" / "card.json").is_file())
    console = Console(highlight=False)
    with Story() as story:
        data = load_data("digits")
        split = pool_of(data.train, asked.seed, 0.5)
        cards = {}
        for name, attack in (("victim", ATTACK), ("twin", NoAttack())):
            words = "a network with a backdoor" if name == "victim" else "its clean twin"
            story.stage(f"training {words} on {len(split.victim):,} digits")
            planting = Planting(attack=attack, arch=ARCH, recipe=RECIPE, seed=asked.seed)
            cards[name] = plant(planting, data, asked.out / name, on_round=story.round)
        victim, card = load_victim(asked.out / "victim")
        twin, _ = load_victim(asked.out / "twin")
        assert victim.backdoor is not None
        assert isinstance(victim.model, Network)
        measured = card["measured"]
        story.stage(
            f"the victim reads {measured['acc']['value']:.1%} of clean digits right, and calls "
            f"{measured['asr']['value']:.1%} of those with the patch a {card['rule']['target']}"
        )
        pool = split.pool
        sampled = defender_data(pool, spc=SPC, rng=Rng(asked.seed).child("sample"))
        question = Question(
            model=victim.model,
            method=defense(victim.backdoor.trigger),
            data=sampled,
            seed=asked.seed,
            test=data.test,
            backdoor=victim.backdoor,
            twin=twin.model,
            planted_asr=measured["asr"]["value"],
            described={
                "spc": SPC,
                "source": "digits",
                "model": model_spec(victim.model, card),
            },
        )
        outcome = run_repair(
            question,
            command=command_line("demo", arguments),
            on_round=story.round,
            on_stage=story.stage,
        )
        page = write_outcome(asked.out / "repaired", outcome, {"repaired_from": "victim"})
    console.print(terminal_table(outcome.record))
    console.print(outcome.record["verdict"]["sentence"])
    for finding in outcome.record["checks"]:
        console.print(f"{finding['level']}: {finding['message']}", markup=False)
    print(f"page: {page.resolve()}")
    return 0 if outcome.record["verdict"]["ok"] else 1

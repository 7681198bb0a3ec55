"""What a defense leaves, beside what a peer's published code leaves: ACC, ASR and RA of both.

Claim      where a defense does much worse here than its paper says, so does published code on the
           same victim, images and settings, or the page says what differs: docs/defenses.md
Command    EXCISE_DATA=… python benchmarks/outcomes_of_peers.py --backdoorbench PATH --fork PATH
               --bti-dbf PATH
           python benchmarks/outcomes_of_peers.py --write    (the table, into docs/defenses.md)
Hardware   one thread, no GPU
Runs       one of each side, seed 0; of 2,000 test images, so a rate is known to two points
Time       half an hour for both victims on an idle core
Victims    development victims (seed 1), on which no defense is reported

Peers      as in against_peers.py, whose duels do the work here with a method's own settings
Compared   the settings of the core grid (its presets), the same defender's images. Of the peers'
           code what tests on test images is left out: ANP and RNP, whose thresholds theirs chooses
           by them, have theirs chosen from its masks by our rule. Rows with a colon take away, on
           one side, what both differ by
Record     benchmarks/records/outcomes-of-peers.json, row by row: what is there is not run again
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# A script's own directory is first on the path, so its neighbors need no package.
import fork_duels
from authors_duels import BTIDBF, bti_dbf
from dueling import SPC, Duel, Field, Timed, clocked, field_of, repaired
from duels import anp, fp, ft, ft_sam, mcr, mitigated, nad, npd, rnp, sau
from fork_duels import fst, ims, mm_bm, nft, pbe
from pages import between
from peers import Fork, Peer, commit, quiet, replaced, with_norms

if TYPE_CHECKING:
    from torch import Tensor, nn

    from excise.types import LabelledImages

HERE = Path(__file__).parent
VICTIMS = ("cifar10-badnets-1", "cifar10-blended-1")
RECORD = HERE / "records" / "outcomes-of-peers.json"
PAGE = HERE.parent / "docs" / "defenses.md"
BEGIN, END = "<!-- made by benchmarks/outcomes_of_peers.py -->", "<!-- end of these outcomes -->"
#: Every fifth test image: 2,000 of CIFAR-10.
EVERY = 5


def i_bau(peer: Peer, field: Field, method: Any) -> Duel:
    """Return the whole method; theirs asks for a GPU by name, and gets the processor."""
    import torch

    zeros = torch.zeros_like

    def theirs(_: int) -> Timed:
        with replaced(torch, zeros_like=lambda tensor, device=None, **more: zeros(tensor, **more)):
            return mitigated(
                peer, field, "i-bau", "i_bau", n_rounds=method.rounds, K=method.iterations,
                batch_size=method.batch_size, lr=method.learning_rate,
            )  # fmt: skip

    return Duel("i-bau", "", lambda i: repaired(method, field, i), theirs)


def fmp(peer: Peer, field: Field, method: Any) -> Duel:
    """Return the whole method, in eval mode while filters are tried."""
    module = peer.defense["fmp"]

    def theirs(_: int) -> Timed:
        images = field.data.everything()
        tried = peer.loader(images, method.images, augment=True)
        loader = peer.loader(images, method.batch_size, augment=True)
        args = peer.args("fmp", adv_dataset_size=method.images, epochs=method.epochs)

        def work() -> nn.Module:
            net = field.body().eval()
            ranks, _ = module.obtain_adv_dataset(args, net, tried)
            tuned: nn.Module = module.train(
                args, module.initialize(net, ranks), loader, None, ranks
            )
            return tuned

        with replaced(module, tqdm=lambda steps: steps):
            return clocked(work)

    return Duel("fmp", "", lambda i: repaired(method, field, i), theirs)


def nft_at_rest(peer: Peer, field: Field, method: Any) -> Duel:
    """Return NFT with the peer's batch norms in eval mode, as ours are."""
    from torch import nn

    duel = nft(peer, field, method)

    def resting(model: nn.Module, norm: Callable[[int], nn.Module]) -> nn.Module:
        net = with_norms(model, norm)
        setattr(net, "train", lambda mode=True: nn.Module.train(net, False))  # noqa: B010
        return net.train()

    def theirs(number: int) -> Timed:
        with replaced(fork_duels, with_norms=resting):
            return duel.theirs(number)

    return replace(duel, theirs=theirs)


def mcr_zeroed(peer: Peer, field: Field, method: Any) -> Duel:
    """Return MCR with the peer's gradients zeroed every epoch, which here is one step."""
    duel, kind = mcr(peer, field, method), peer.defense["mcr"].MCR
    one_epoch = kind.train_curve_one_epoch

    def zeroed(self: Any, args: Any, net: nn.Module, *rest: Any) -> Any:
        net.zero_grad()
        return one_epoch(self, args, net, *rest)

    def theirs(number: int) -> Timed:
        with replaced(kind, train_curve_one_epoch=zeroed):
            return duel.theirs(number)

    return replace(duel, theirs=theirs)


class Match(NamedTuple):
    """A defense on both sides, whole.

    Args:
        make: given the peer, the field and our method, its duel.
        peer: whose code theirs is.
        preset: the settings of the core grid.
        masks: theirs are masks on batch norms, by which a network is yet to be pruned.
        fields: settings of ours that stand above the preset's.
    """

    make: Callable[[Any, Field, Any], Duel]
    peer: str
    preset: str
    masks: bool = False
    fields: Mapping[str, Any] = {}


MATCHES: Mapping[str, Match] = {
    "anp": Match(anp, "backdoorbench", "fast", masks=True),
    "rnp": Match(rnp, "backdoorbench", "published", masks=True),
    "nft": Match(nft, "fork", "fast"),
    "ft": Match(ft, "backdoorbench", "published"),
    "ft-sam": Match(ft_sam, "backdoorbench", "fast"),
    "fst": Match(fst, "fork", "published"),
    "nad": Match(nad, "backdoorbench", "published"),
    "pbe": Match(pbe, "fork", "published"),
    "npd": Match(npd, "backdoorbench", "published"),
    "sau": Match(sau, "backdoorbench", "fast"),
    "fp": Match(fp, "backdoorbench", "fast"),
    "mcr": Match(mcr, "backdoorbench", "fast"),
    "i-bau": Match(i_bau, "backdoorbench", "published"),
    "mm-bm": Match(mm_bm, "fork", "published"),
    "fmp": Match(fmp, "fork", "fast"),
    "ims": Match(ims, "fork", "fast"),
    "bti-dbf": Match(bti_dbf, "bti-dbf", "fast"),
    # What the sides differ by, taken away on one of them.
    "i-bau: our rates a sixteenth": Match(
        i_bau, "backdoorbench", "published",
        fields={"perturbation_rate": 10 / 16, "inner_rate": 0.1 / 16, "penalty": 0.001 * 16},
    ),
    "nft: theirs in eval mode": Match(nft_at_rest, "fork", "fast"),
    "mcr: their gradients zeroed": Match(mcr_zeroed, "backdoorbench", "fast"),
}  # fmt: skip


def method_of(name: str) -> Any:
    """Return our method of a match, with its settings."""
    from excise import registry

    match, name = MATCHES[name], name.partition(":")[0]
    preset = registry.find("defense", name).presets()[match.preset]
    return registry.build("defense", name, {**preset, **match.fields})


def pruned_by(masked: nn.Module, method: Any, field: Field) -> nn.Module:
    """Return the victim pruned as ours would be, by the masks that theirs learned."""
    from excise.models import apply_edits, working_copy
    from excise.training.thresholds import prune_below, thresholds
    from excise.types import ignore_round

    masks: dict[str, Tensor] = {
        f"body.{name.removesuffix('neuron_mask')}weight": mask.detach()
        for name, mask in masked.named_parameters()
        if name.endswith("neuron_mask")
    }
    relative = hasattr(method, "max_relative_accuracy_drop")
    allowed = method.max_relative_accuracy_drop if relative else method.max_accuracy_drop
    edits, _ = prune_below(
        working_copy(field.model), masks, thresholds(method.threshold_step, method.last_threshold),
        field.data.held_out("ANP") if relative else field.data.everything(), allowed=allowed,
        relative=relative, first_failure_ends=not relative, batch_size=method.batch_size,
        on_round=ignore_round,
    )  # fmt: skip
    pruned = working_copy(field.model)
    apply_edits(pruned, edits, ())
    return pruned


def with_body(field: Field, body: nn.Module) -> nn.Module:
    """Return a peer's network, which was given normalized images, as one of [0, 1] images."""
    whole = copy.deepcopy(field.model)
    setattr(whole, "body", body)  # noqa: B010 — a name torch's type does not have
    return whole


def measured(net: nn.Module, field: Field, test: LabelledImages) -> dict[str, float | None]:
    from excise.evaluation import evaluate

    backdoor = field.backdoor
    found = evaluate(net.eval(), test, trigger=backdoor.trigger, rule=backdoor.rule)
    rates = {"acc": found.acc, "asr": found.asr, "ra": found.ra}
    return {name: rate.value if rate else None for name, rate in rates.items()}


def seeded(seed: int) -> None:
    """Seed what a peer's code draws from."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def outcome(name: str, peer: Peer, field: Field, test: LabelledImages) -> dict[str, Any]:
    """Run a defense whole on both sides and return the record's row, but for its victim."""
    match = MATCHES[name]
    method = method_of(name)
    with peer.here():
        duel = match.make(peer, field, method)
        ours = duel.ours(0)
        seeded(0)
        with quiet():
            theirs = duel.theirs(0)
    left = theirs.result
    net = pruned_by(left, method, field) if match.masks else with_body(field, left)
    return {
        "method": name,
        "preset": match.preset,
        "images": len(field.data.everything()),
        "test_images": len(test),
        "ours": measured(ours.result.model, field, test),
        "theirs": measured(net, field, test),
        "seconds_ours": ours.cpu,
        "seconds_theirs": theirs.cpu,
    }


def measure(asked: argparse.Namespace) -> None:
    """Run what the record has not; keep every row as soon as it is there."""
    import torch

    from excise.data import load_data
    from excise.experiments.environment import environment
    from excise.files import write_json

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    paths = {"backdoorbench": asked.backdoorbench, "fork": asked.fork, "bti-dbf": asked.bti_dbf}
    kinds = {"backdoorbench": Peer, "fork": Fork, "bti-dbf": BTIDBF}
    wanted = {MATCHES[name].peer for name in asked.only or MATCHES}
    peers = {name: kinds[name](paths[name].resolve()) for name in wanted}
    commits = {name: commit(paths[name]) for name in sorted(wanted)}
    test = load_data("cifar10").test
    assert test is not None
    test = test.subset(torch.arange(0, len(test), EVERY))
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {"rows": []}
    rows = {(row["method"], row["victim"], row["spc"]): row for row in kept["rows"]}
    for victim in asked.victims:
        field = field_of(HERE / "victims" / victim, spc=asked.spc)
        before = measured(field.model, field, test)
        for name in asked.only or MATCHES:
            key = name, victim, asked.spc
            if key in rows:
                continue
            row = outcome(name, peers[MATCHES[name].peer], field, test)
            rows[key] = {"victim": victim, "spc": asked.spc, "before": before, **row}
            print(
                f"{victim} {name}: ours {said(row['ours'])}, theirs {said(row['theirs'])}",
                flush=True,
            )
            write_json(RECORD, {
                "environment": environment(torch.device("cpu")),
                "peers": {**kept.get("peers", {}), **commits},
                "rows": list(rows.values()),
            })  # fmt: skip


def said(rates: Mapping[str, float | None]) -> str:
    """Return ACC, ASR and RA in percent."""
    return " / ".join("–" if rate is None else f"{100 * rate:.1f}" for rate in rates.values())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of one number of images a class: a line a defense, two columns a victim."""
    victims = list(dict.fromkeys(row["victim"] for row in rows))
    head = ["defense", "settings"]
    for victim in victims:
        before = next(row["before"] for row in rows if row["victim"] == victim)
        head += [f"{victim}, before {said(before)}: ours", "published code"]
    lines = [f"| {' | '.join(head)} |", f"|{'-|' * len(head)}"]
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = [name, next(row["preset"] for row in rows if row["method"] == name)]
        for victim in victims:
            row = next((r for r in rows if (r["method"], r["victim"]) == (name, victim)), None)
            cells += [said(row[side]) if row else "not run" for side in ("ours", "theirs")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page_with(page: str) -> str:
    """Return the page with the tables between its markers."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    tables = [
        f"SPC {spc}, ACC / ASR / RA of {rows[0]['test_images']:,} test images:\n\n"
        + table([row for row in rows if row["spc"] == spc])
        for spc in dict.fromkeys(row["spc"] for row in rows)
    ]
    return between(page, BEGIN, END, "\n\n".join(tables))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backdoorbench", type=Path, metavar="PATH", help="a checkout of it")
    parser.add_argument("--fork", type=Path, metavar="PATH", help="a checkout of it")
    parser.add_argument("--bti-dbf", type=Path, metavar="PATH", help="a checkout of it (authors')")
    parser.add_argument("--victims", nargs="+", default=VICTIMS, help="CIFAR-10 bundles of the zoo")
    parser.add_argument("--only", nargs="+", default=[], choices=sorted(MATCHES), metavar="NAME")
    parser.add_argument("--spc", type=int, default=SPC, help="the defender's images a class")
    parser.add_argument("--write", action="store_true", help="write the table and stop")
    asked = parser.parse_args()
    from excise.errors import InputError
    from excise.files import write_text

    if asked.write:
        write_text(PAGE, page_with(PAGE.read_text(encoding="utf-8")))
        return 0
    wanted = {MATCHES[name].peer for name in asked.only or MATCHES}
    missing = [name for name in sorted(wanted) if getattr(asked, name.replace("-", "_")) is None]
    if missing:
        parser.error(f"expected --{missing[0]} PATH, or --only others, or --write, got none")
    try:
        measure(asked)
    except InputError as error:
        print(f"outcomes_of_peers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

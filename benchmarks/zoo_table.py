"""The tables of docs/zoo.md, made from the cards of the bundles that benchmarks/zoo.py writes.

Claim      docs/zoo.md; a test compares what stands there with what this script returns
Command    python benchmarks/zoo_table.py                          (print the tables)
           python benchmarks/zoo_table.py --write                  (put them into docs/zoo.md)
           EXCISE_DATA=… python benchmarks/zoo_table.py --remeasure
Time       seconds; --remeasure about five seconds a victim on one core

``--remeasure`` measures how visible a trigger is where a card does not say so yet, because its
victim was planted by an older Excise. Nothing else in the card changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# A script's own directory is first on the path, so its neighbors need no package.
from pages import between
from zoo import Cell, cells

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
BEGIN, END = "<!-- made by benchmarks/zoo_table.py -->", "<!-- end of what it made -->"
VISIBLE = (
    ("mean_change", "{:.2f}"),
    ("psnr", "{:.1f}"),
    ("ssim", "{:.3f}"),
    ("high_frequency_share", "{:.3f}"),
)
NAMES = {"excise:preactresnet18": "PreActResNet-18", "excise:vgg19_bn": "VGG-19-BN"}


def tables() -> str:
    """Return both tables as they stand between the markers of docs/zoo.md."""
    every = cells()
    return "\n\n".join([victims(every), clean(every)])


def victims(every: Iterable[Cell]) -> str:
    """Return a row for every victim; what has no bundle is shown as not run."""
    lines = [
        "| attack | data | seed | epochs | ACC | clean twin's ACC | ASR | RA | mean change "
        "| PSNR | SSIM | high frequencies |",
        "|-|-|-|-|-|-|-|-|-|-|-|-|",
    ]
    every = list(every)
    trained = {cell.name: cell.epochs for cell in every}
    for cell in every:
        if cell.attack == "none":
            continue
        first = [cell.attack, cell.data, str(cell.seed), str(cell.epochs)]
        card = card_of(cell.out)
        if card is None:
            lines.append(row([*first, "not run", *[""] * 7]))
            continue
        if card["arch"] != f"{cell.arch},width={cell.width}":
            first[1] += f", {card['arch']}"
        measured = card["measured"]
        # The clean twin lies beside its victims.
        twin = card_of(cell.out.parent / cell.twin) if cell.twin else None
        acc, asr, ra = (percent(measured[key]) for key in ("acc", "asr", "ra"))
        floor = percent(twin["measured"]["acc"]) if twin else "not run"
        if twin and cell.twin and trained[cell.twin] != cell.epochs:
            floor += f" ({trained[cell.twin]} epochs)"
        seen = measured.get("visibility") or {}
        visible = [
            form.format(seen[key]) if seen.get(key) is not None else "–" for key, form in VISIBLE
        ]
        lines.append(row([*first, acc, floor, asr, ra, *visible]))
    return "\n".join(lines)


def clean(every: Iterable[Cell]) -> str:
    """Return how many clean networks of each kind stand, and how accurate they are."""
    kinds: dict[tuple[str, str, int, int], list[Cell]] = {}
    for cell in every:
        if cell.attack == "none":
            kinds.setdefault((cell.data, cell.arch, cell.width, cell.epochs), []).append(cell)
    lines = ["| clean networks | epochs | trained | planned | ACC |", "|-|-|-|-|-|"]
    for (data, arch, width, epochs), planned in kinds.items():
        cards = [card for cell in planned if (card := card_of(cell.out))]
        kind = f"{data}, {NAMES.get(arch, arch)} of width {width}"
        found = sorted(card["measured"]["acc"]["value"] for card in cards)
        lines.append(
            row([kind, str(epochs), str(len(cards)), str(len(planned)), span(found) or "not run"])
        )
    return "\n".join(lines)


def row(cells_of_row: Sequence[str]) -> str:
    return "| " + " | ".join(cells_of_row) + " |"


def percent(rate: dict[str, Any] | None) -> str:
    return "–" if rate is None or rate["value"] is None else f"{100 * rate['value']:.1f}"


def span(values: Sequence[float]) -> str:
    """Return the lowest and the highest of some fractions, in percent."""
    ends = [f"{100 * value:.1f}" for value in (values[0], values[-1])] if values else []
    return "–".join(dict.fromkeys(ends))


def card_of(bundle: Path) -> dict[str, Any] | None:
    path = bundle / "card.json"
    if not path.is_file():
        return None
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return card


def page_with(text: str, made: str) -> str:
    """Return a page with ``made`` between its markers."""
    return between(text, BEGIN, END, made)


def remeasure(every: Iterable[Cell]) -> None:
    """Add a trigger's visibility to the cards that lack it."""
    lacking = [
        cell for cell in every
        if cell.attack != "none" and (card := card_of(cell.out))
        and not card["measured"].get("visibility")
    ]  # fmt: skip
    if not lacking:
        print("nothing to measure: every card of a victim says how visible its trigger is")
        return
    import torch

    from excise.attacks import load_backdoor
    from excise.data import load_data
    from excise.evaluation import visibility
    from excise.files import write_json

    torch.set_num_threads(1)
    loaded: tuple[object, Any] = (None, None)
    for cell in sorted(lacking, key=lambda c: (c.data, str(c.size))):
        if loaded[0] != (cell.data, cell.size):  # one data set in memory at a time
            loaded = ((cell.data, cell.size), load_data(cell.data, size=cell.size).test)
        # Read again: minutes may have passed.
        card = card_of(cell.out)
        assert card is not None
        seen = visibility(loaded[1], load_backdoor(cell.out, card).trigger)
        card["measured"]["visibility"] = seen.to_json()
        write_json(cell.out / "card.json", card)
        print(f"{cell.name}: mean change {seen.mean_change:.2f}/255", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/zoo.md")
    parser.add_argument("--remeasure", action="store_true", help="fill in missing visibility")
    asked = parser.parse_args()
    if asked.remeasure:
        from excise.errors import InputError

        try:
            remeasure(cells())
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
    if asked.write:
        from excise.files import write_text

        write_text(PAGE, page_with(PAGE.read_text(encoding="utf-8"), tables()))
        print(f"written: {PAGE.name}")
    elif not asked.remeasure:
        print(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())

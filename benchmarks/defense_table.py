"""The tables of docs/defenses.md, made from the records of the core and the full-width grid.

Claim      docs/defenses.md; a test compares what stands there with what this script returns
Command    python benchmarks/defense_table.py            (print the tables)
           python benchmarks/defense_table.py --write    (put them into docs/defenses.md)
Records    EXCISE_DATA=… excise sweep benchmarks/grids/core.toml --store benchmarks/records/core
               --victims benchmarks/victims
           EXCISE_DATA=… excise sweep benchmarks/grids/full_width.toml
               --store benchmarks/records/full-width --workers 8    (wants a GPU)
Time       a second
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

# A script's own directory is first on the path, so its neighbor needs no package.
from pages import between

from excise import registry

RECORDS = Path(__file__).parent / "records"
PAGE = Path(__file__).parents[1] / "docs" / "defenses.md"
#: Of every grid, the lines between which its tables stand.
MARKS = {
    "core": ("<!-- made by benchmarks/defense_table.py -->", "<!-- end of what it made -->"),
    "full-width": (
        "<!-- full width, made by benchmarks/defense_table.py -->",
        "<!-- end of full width -->",
    ),
}
ATTACKS = ("badnets", "blended", "lf", "wanet")
BUDGETS = (2, 10, 100, 250)

Record = Mapping[str, Any]


def records(grid: str = "core") -> list[Record]:
    """Return every finished run of a grid; of two that differ in their twin alone, the one."""
    paths = sorted((RECORDS / grid / "records").glob("??/*.json"))
    found = [json.loads(path.read_text()) for path in paths]
    done = [record for record in found if record.get("status") == "done"]
    # A run with a clean twin measures the same repair as one without, and more of it.
    by_key = {_repair_of(r): r for r in sorted(done, key=lambda r: r["floor"] is not None)}
    return [record for record in done if by_key[_repair_of(record)] is record]


def _repair_of(record: Record) -> str:
    run = {key: value for key, value in record["run"].items() if key != "twin"}
    return json.dumps(run, sort_keys=True)


def tables(found: Sequence[Record], grid: str = "core") -> str:
    """Return a table for every budget of which there is a record."""
    parts = []
    for spc in BUDGETS:
        some = [record for record in found if record["run"]["spc"] == spc]
        if some:
            # The core grid is every defense's; the other is what a lent GPU had the time for.
            every = grid == "core" and spc >= 10
            title = f"SPC {spc}" if grid == "core" else f"Full width, SPC {spc}"
            parts.append(f"### {title}\n\n{table(some, every=every)}")
    return "\n\n".join(parts)


def table(found: Sequence[Record], *, every: bool) -> str:
    """Return one row a defense and setting; defenses that were not run say so.

    Args:
        found: records of one budget.
        every: whether defenses without any record get a row.
    """
    lines = [
        "| defense | settings | "
        + " | ".join(f"{attack}: ACC / ASR / RA" for attack in ATTACKS)
        + " | worst DER | mean DER | seconds | peak MiB |",
        "|" + "-|" * (len(ATTACKS) + 6),
    ]
    for row in registry.rows("defense"):
        own = [record for record in found if record["run"]["defense"]["name"] == row.name]
        settings = dict.fromkeys(setting(record["run"]["defense"]) for record in own)
        if not settings and every:
            lines.append(
                f"| {row.name} | | " + " | ".join("not run" for _ in ATTACKS) + " | | | | |"
            )
        for said in settings:
            some = [record for record in own if setting(record["run"]["defense"]) == said]
            lines.append(f"| {row.name} | {said} | {' | '.join(_cells(some))} |")
    return "\n".join(lines)


def _cells(own: Sequence[Record]) -> list[str]:
    by_attack = {
        attack: [r for r in own if r["run"]["attack"]["name"] == attack] for attack in ATTACKS
    }
    cells = [_rates(some) if some else "not run" for some in by_attack.values()]
    # A defense that was not run everywhere has no worst and no mean to compare with the others'.
    whole = all(by_attack.values())
    ders = [record["comparison"]["der"]["value"] for record in own]
    cells += [f"{min(ders):.3f}", f"{mean(ders):.3f}"] if whole else ["", ""]
    seconds = [record["seconds"]["repair"] for record in own]
    memory = [record["peak_memory_mib"] for record in own if record["peak_memory_mib"]]
    return [*cells, f"{mean(seconds):.0f}", f"{max(memory):.0f}" if memory else ""]


def _rates(some: Sequence[Record]) -> str:
    """Return ACC / ASR / RA after the repair, means over seeds, in percent."""
    means = [100 * mean(r["after"][key]["value"] for r in some) for key in ("acc", "asr", "ra")]
    seeds = f" ({len(some)} seeds)" if len(some) > 1 else ""
    return " / ".join(f"{value:.1f}" for value in means) + seeds


def setting(spec: Mapping[str, Any]) -> str:
    """Return the name of the preset a recorded defense has, or where it differs from defaults."""
    name = spec["name"]
    row = registry.find("defense", name)
    method = row.load()
    fields = {f["name"]: f["default"] for f in row.fields()}
    # What no paper describes has no published settings.
    usual = "published" if row.paper else "default"
    presets: Mapping[str, Mapping[str, Any]] = {usual: {}, **getattr(method, "PRESETS", {})}
    for preset, values in presets.items():
        agree = [
            _same(spec.get(key), values[key]) if key in values else _default(spec.get(key), default)
            for key, default in fields.items()
        ]
        if all(agree):
            return preset
    changed = {k: v for k, v in spec.items() if k != "name" and not _default(v, fields.get(k, ""))}
    # What differs only in fields it lacks was run before the method had them.
    return ", ".join(f"{key}={value}" for key, value in changed.items()) or "an earlier form"


def _same(value: Any, other: Any) -> bool:
    # JSON has lists where a preset may have tuples.
    return value == (list(other) if isinstance(other, tuple) else other)


def _default(value: Any, default: str) -> bool:
    # Methods inside a method (an inverter) are compared by the sweep's key, not here.
    if default == "required" or isinstance(value, Mapping):
        return True
    shown = repr(tuple(value)) if isinstance(value, list) else repr(value)
    return shown == default


def page_with(page: str, found: Sequence[Record], grid: str = "core") -> str:
    """Return the page with the tables of these records between their grid's markers."""
    made = f"{before(found)}\n\n{tables(found, grid)}" if found else "Not run."
    return between(page, *MARKS[grid], made)


def before(found: Iterable[Record]) -> str:
    """Return what the victims show before any repair, and the floor of their clean twins."""
    lines = ["| attack | victim: ACC / ASR / RA | clean twin: ACC / ASR / RA |", "|-|-|-|"]
    for attack in ATTACKS:
        some = [r for r in found if r["run"]["attack"]["name"] == attack and r["run"]["seed"] == 0]
        if some:
            floor = next((r["floor"] for r in some if r["floor"]), None)
            cells = [attack, _figures(some[0]["before"]), _figures(floor) if floor else "not run"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figures(measured: Mapping[str, Any]) -> str:
    return " / ".join(f"{100 * measured[key]['value']:.1f}" for key in ("acc", "asr", "ra"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    asked = parser.parse_args()
    for grid in MARKS:
        found = records(grid)
        if asked.write:
            PAGE.write_text(page_with(PAGE.read_text(), found, grid))
        else:
            print(f"{before(found)}\n\n{tables(found, grid)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

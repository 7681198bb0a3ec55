"""What papers report, beside what the runs at hand measured (``published.toml``)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from excise.leaderboard.runs import Runs

__all__ = ["Beside", "Published", "beside", "published"]

#: Other names under which a registry, or an outside author, may list the same method.
_ALIASES = {
    "ft": ("ft", "fine-tune", "fine-tuning", "finetune"),
    "fp": ("fp", "fine-pruning", "fine-prune"),
    "nc": ("nc", "neural-cleanse"),
    "i-bau": ("i-bau", "ibau"),
    "ft-sam": ("ft-sam", "ftsam"),
    "mbns": ("mbns", "bnp"),
    "input-aware": ("input-aware", "iab"),
}


@dataclass(frozen=True)
class Published:
    """One reported result; figures are fractions, None where not reported.

    Args:
        defense: the method.
        data: the data set.
        attack: one attack, or which mean over attacks.
        clean: share of the training set the defense was given.
        acc: clean accuracy afterwards.
        asr: attack success afterwards.
        ra: recovery accuracy.
        der: defense effectiveness rating.
        source: where it stands.
        read: ``paper``, ``raw`` (a benchmark's own results) or ``note`` (second-hand).
        note: what else is to be known.
    """

    defense: str
    data: str
    attack: str
    clean: str
    acc: float | None
    asr: float | None
    ra: float | None
    der: float | None
    source: str
    read: str
    note: str

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean over attacks."""
        return self.attack.startswith("mean")


@dataclass(frozen=True)
class Beside:
    """A reported result, and the mean of the runs of the same method, data and attack.

    Args:
        reported: what a paper says.
        measured: mean figures here; empty where nothing was run.
        runs: how many runs that is the mean of.
        setting: networks, attacks and budgets of those runs.
    """

    reported: Published
    measured: dict[str, float]
    runs: int
    setting: str


@cache
def published() -> tuple[Published, ...]:
    """Return every reported result."""
    text = files("excise.leaderboard").joinpath("published.toml").read_text(encoding="utf-8")
    said = tomllib.loads(text)
    return tuple(
        Published(
            defense=row["defense"],
            data=row["data"],
            attack=row["attack"],
            clean=row["clean"],
            source=said["sources"][row["source"]]["title"],
            read=said["sources"][row["source"]]["read"],
            note=row.get("note", ""),
            **{
                name: round(row[name] / 100, 6) if name in row else None
                for name in ("acc", "asr", "ra", "der")
            },
        )
        for row in said["figure"]
    )


def beside(runs: Runs) -> tuple[Beside, ...]:
    """Return what is reported of the methods and data sets that these runs have.

    Figures here are means over finished runs of that method on that data set, and on that attack
    where the reported one is of a single attack.
    """
    if not {"defense", "data", "attack"} <= runs.axes.keys():
        return ()
    found = []
    for row in published():
        defenses = _names(row.defense, runs.axes["defense"])
        attacks = runs.axes["attack"] if row.is_mean else _names(row.attack, runs.axes["attack"])
        if not defenses or row.data not in runs.axes["data"]:
            continue
        model, spc = (_listed(axis) if axis in runs.axes else "NULL" for axis in ("model", "spc"))
        query = f"""
            SELECT count(*), avg("after.acc"), avg("after.asr"), avg("after.ra"), avg(der),
                {model}, {spc}, count(DISTINCT attack)
            FROM runs WHERE status = 'done' AND "after.asr" IS NOT NULL AND data = ?
                AND list_contains(?, defense) AND list_contains(?, attack)
        """
        count, *means, models, budgets, kinds = runs.sql(
            query, (row.data, list(defenses), list(attacks))
        )[0]
        if not count and not row.is_mean:
            continue
        names = ("acc", "asr", "ra", "der")
        said = [", ".join(sorted(models or ["network not said"]))]
        if budgets:
            said.append(f"SPC {', '.join(_sorted(budgets))}")
        if row.is_mean:
            said.append(f"{kinds} attack{'s' if kinds != 1 else ''}")
        measured = {n: v for n, v in zip(names, means, strict=True) if v is not None}
        found.append(Beside(row, measured, int(count), " · ".join(said) if count else ""))
    return tuple(found)


def _names(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(other for other in known if other in _ALIASES.get(name, (name,)))


def _listed(axis: str) -> str:
    return f"list(DISTINCT {axis}) FILTER ({axis} IS NOT NULL)"


def _sorted(words: list[str]) -> list[str]:
    return sorted(words, key=lambda word: (len(word), word))

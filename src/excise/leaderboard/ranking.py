"""Who is best, by how much, and how sure that is: on the runs that all the ranked ones share.

What entrants, instances and cells are: :mod:`.instances`.

A hole flatters nobody: an entrant is ranked only on instances that every ranked entrant finished.
Those that finished too few of them are listed, not ranked.

* **mean**: over the shared instances. Its 95 % interval resamples **victims**, with all that was
  done to each (percentile bootstrap); with fewer than ten victims it is Student's t over victims
  instead; with one there is none.
* **worst**: the cell with the worst mean over its seeds. Its interval is Student's t over its
  victims; it does not know that the cell was picked because it is the worst.
* **rank stability**: the share of resamples in which an entrant has a rank. All entrants meet the
  same resampled victims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from excise.errors import SpecError, nearest
from excise.leaderboard.instances import (
    MEASURES,
    Floats,
    Indices,
    Instances,
    Measure,
    instances,
)
from excise.leaderboard.runs import Runs

__all__ = ["ORDERS", "Figure", "Ranking", "Standing", "rank"]

ORDERS = tuple(f"{worst}{m.name}" for worst in ("", "worst-") for m in MEASURES)

#: Victims, fewer than which are too few to resample.
_FEW = 10


@dataclass(frozen=True)
class Figure:
    """One measure of one entrant; an interval is None where nothing can be said.

    Args:
        mean: over the shared instances.
        low: of the mean's 95 % interval.
        high: likewise.
        worst: mean over the seeds of the worst cell.
        worst_low: of its 95 % interval.
        worst_high: likewise.
        worst_cell: which cell that is.
    """

    mean: float
    low: float | None
    high: float | None
    worst: float
    worst_low: float | None
    worst_high: float | None
    worst_cell: str


@dataclass(frozen=True)
class Standing:
    """One entrant.

    Args:
        name: what distinguishes it from the others.
        values: its value on every axis it is told apart by.
        rank: from 1; equals share one; None if it is not ranked.
        figures: by the name of the measure; only what was measured.
        rank_shares: share of resamples in which it has rank 1, 2, …; empty with one victim.
        kept: share of resamples in which it has the rank it has.
        done: its finished runs.
        failed: its failed runs.
        covered: instances it finished, of ``Ranking.instances``.
        missing: some of the instances it did not finish.
    """

    name: str
    values: dict[str, str]
    rank: int | None
    figures: dict[str, Figure]
    rank_shares: tuple[float, ...]
    kept: float | None
    done: int
    failed: int
    covered: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """Everything a leaderboard says.

    Args:
        by: the axes that entrants are told apart by.
        order: the measure that decides.
        standings: ranked first, then those that are not.
        references: means over the runs that are ranked, of the network before any repair and of
            its clean twin, where all measured it.
        instances: that anybody tried.
        shared: that every ranked entrant finished.
        victims: behind the shared ones.
        cells: behind the shared ones.
        unattacked: finished runs without a trigger to measure, which are left out.
        resamples: of the bootstrap.
        coverage: share of all instances an entrant must have finished.
        notes: what a reader has to know.
    """

    by: tuple[str, ...]
    order: str
    standings: tuple[Standing, ...]
    references: dict[str, dict[str, float]]
    instances: int
    shared: int
    victims: int
    cells: int
    unattacked: int
    resamples: int
    coverage: float
    notes: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[Standing, ...]:
        """Those that have a rank."""
        return tuple(s for s in self.standings if s.rank is not None)


def rank(
    runs: Runs,
    by: Sequence[str] = ("defense",),
    order: str = "der",
    *,
    coverage: float = 0.5,
    resamples: int = 2000,
    seed: int = 0,
) -> Ranking:
    """Rank what ``by`` tells apart.

    Args:
        runs: finished and failed ones.
        by: one or several axes; a method's fields that differ count along with it.
        order: a measure, or ``worst-`` and a measure.
        coverage: share of the instances that an entrant must have finished to be ranked.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        SpecError: an unknown axis or order, a number out of range, or no finished run.
    """
    if order not in ORDERS:
        raise SpecError("an order", got=repr(order), remedy=nearest(order, ORDERS))
    if not 0 < coverage <= 1:
        raise SpecError("a coverage over 0, at most 1", got=str(coverage), remedy="Leave it out.")
    if resamples < 1:
        raise SpecError("at least one resample", got=str(resamples), remedy="Leave it out.")
    if not runs.done:
        raise SpecError(
            "at least one finished run",
            got=f"none ({runs.failed:,} failed)",
            remedy="The records of failed runs say why; run the sweep again with --retry-failed.",
        )
    numbered = instances(runs, by)
    return _Contest(runs, numbered, tuple(by), order, coverage, resamples, seed).ranking()


class _Contest:
    """One ranking at work."""

    def __init__(
        self,
        runs: Runs,
        numbered: Instances,
        by: tuple[str, ...],
        order: str,
        coverage: float,
        resamples: int,
        seed: int,
    ) -> None:
        self.runs, self.numbered, self.by, self.order = runs, numbered, by, order
        self.coverage, self.resamples, self.seed = coverage, resamples, seed
        n = numbered
        attacked = bool(np.isfinite(n.figures["asr"]).any())
        needed = [m.name for m in MEASURES if m.needed and (attacked or m.name == "acc")]
        self.usable = n.done.copy()
        for m in needed:
            self.usable &= np.isfinite(n.figures[m])
        self.unattacked = int((n.done & ~self.usable).sum())
        # Only instances that somebody could be measured on, or that failed for everybody.
        candidates = self.usable | ~n.done
        self.all_instances = np.unique(n.instance[candidates])
        size = int(n.instance.max()) + 1
        self.there = np.zeros((len(n.names), size), bool)
        self.there[n.entrant[self.usable], n.instance[self.usable]] = True

    def ranking(self) -> Ranking:
        n = self.numbered
        total = len(self.all_instances)
        covered = self.there.sum(axis=1)
        ranked = [e for e in range(len(n.names)) if covered[e] >= max(1, self.coverage * total)]
        notes = []
        ranked = ranked or [e for e in range(len(n.names)) if covered[e] == covered.max() > 0]
        shared = self._shared(ranked)
        while ranked and not shared.any():
            least = min(ranked, key=lambda e: (covered[e], -e))
            ranked.remove(least)
            notes.append(f"{n.names[least]} shares no run with the others and is not ranked.")
            shared = self._shared(ranked)
        chosen = np.flatnonzero(self.usable & shared[n.instance] & np.isin(n.entrant, ranked))
        standings = self._standings(ranked, chosen) if ranked else {}
        order = sorted(ranked, key=lambda e: (standings[e].rank or 0, n.names[e]))
        rest = [e for e in range(len(n.names)) if e not in ranked]
        return Ranking(
            by=self.by,
            order=self.order,
            standings=tuple(
                [standings[e] for e in order] + [self._standing(e, None, {}, ()) for e in rest]
            ),
            references=self._references(chosen),
            instances=total,
            shared=int(shared.sum()),
            victims=len(np.unique(n.victim[chosen])),
            cells=len(np.unique(n.cell[chosen])),
            unattacked=self.unattacked,
            resamples=self.resamples,
            coverage=self.coverage,
            notes=tuple(notes),
        )

    def _shared(self, ranked: list[int]) -> npt.NDArray[np.bool_]:
        """Return which instances all of ``ranked`` finished; none if nobody is ranked."""
        shared = np.full(self.there.shape[1], bool(ranked))
        for e in ranked:
            shared &= self.there[e]
        return shared

    def _standing(
        self, e: int, rank: int | None, figures: dict[str, Figure], shares: tuple[float, ...]
    ) -> Standing:
        n = self.numbered
        mine = n.entrant == e
        lacking = self.all_instances[~self.there[e, self.all_instances]]
        return Standing(
            name=n.names[e],
            values=n.values[e],
            rank=rank,
            figures=figures,
            rank_shares=shares,
            kept=shares[rank - 1] if rank is not None and shares else None,
            done=int((mine & n.done).sum()),
            failed=int((mine & ~n.done).sum()),
            covered=int(self.there[e].sum()),
            missing=tuple(n.labels[i] for i in lacking[:20]),
        )

    def _standings(self, ranked: list[int], chosen: Indices) -> dict[int, Standing]:
        n = self.numbered
        row = {e: i for i, e in enumerate(ranked)}
        entrant = np.array([row[e] for e in n.entrant[chosen].tolist()])
        _, cell = np.unique(n.cell[chosen], return_inverse=True)
        names, victim = np.unique(n.victim[chosen], return_inverse=True)
        cells = int(cell.max()) + 1
        cell_names = dict(zip(cell.tolist(), n.cell[chosen].tolist(), strict=True))
        shape = (len(ranked), len(names))
        kept = {}
        for m in MEASURES:
            values = n.figures[m.name][chosen]
            # A measure that is missing in one place is left out as a whole: no holes here either.
            if np.isfinite(values).all():
                kept[m.name] = values
        means = {m: _mean(values, (entrant,), (len(ranked),)) for m, values in kept.items()}
        worst = {
            m.name: self._worst(m, kept[m.name], entrant, cell, victim, (len(ranked), cells))
            for m in MEASURES
            if m.name in kept
        }
        bounds = {
            m: _within(m, *self._bounds(values, entrant, victim, shape, means[m]))
            for m, values in kept.items()
        }
        name = self.order.removeprefix("worst-")
        if name not in kept:
            raise SpecError(
                "an order by what every ranked run measured",
                got=repr(self.order),
                remedy=nearest("acc", [o for o in ORDERS if o.removeprefix("worst-") in kept]),
            )
        sign = -1.0 if next(m for m in MEASURES if m.name == name).more else 1.0
        if self.order.startswith("worst-"):
            decisive = worst[name][0]
            drawn = self._worst_resampled(kept[name], entrant, cell, victim, len(ranked), sign)
        else:
            decisive = means[name]
            drawn = self._means_resampled(kept[name], entrant, victim, shape)
        ranks = stats.rankdata(np.round(sign * decisive, 12), method="min").astype(int)
        shares = np.zeros((len(ranked), len(ranked)))
        if len(names) > 1:
            resampled = stats.rankdata(np.round(sign * drawn, 12), method="min", axis=1)
            for place in range(len(ranked)):
                shares[:, place] = (resampled == place + 1).mean(axis=0)
        found = {}
        for e, i in row.items():
            figures = {}
            for key in kept:
                value, low, high, at = (part[i] for part in worst[key])
                figures[key] = Figure(
                    mean=float(means[key][i]),
                    low=_end(bounds[key][0][i]),
                    high=_end(bounds[key][1][i]),
                    worst=float(value),
                    worst_low=_end(low),
                    worst_high=_end(high),
                    worst_cell=n.cell_labels[cell_names[int(at)]],
                )
            said = tuple(shares[i].tolist()) if len(names) > 1 else ()
            found[e] = self._standing(e, int(ranks[i]), figures, said)
        return found

    def _worst(
        self,
        measure: Measure,
        values: Floats,
        entrant: Indices,
        cell: Indices,
        victim: Indices,
        shape: tuple[int, int],
    ) -> tuple[Floats, Floats, Floats, Indices]:
        """Return each entrant's worst cell: its mean, its interval, its number."""
        means = _mean(values, (entrant, cell), shape)
        filled = np.where(np.isfinite(means), means, np.inf if measure.more else -np.inf)
        at = filled.argmin(axis=1) if measure.more else filled.argmax(axis=1)
        value, low, high = (np.full(shape[0], np.nan) for _ in range(3))
        for i, c in enumerate(at.tolist()):
            own = (entrant == i) & (cell == c)
            who, each = np.unique(victim[own], return_inverse=True)
            means_of = _mean(values[own], (each,), (len(who),))
            value[i] = values[own].mean()
            low[i], high[i] = np.array(_student(means_of)) + value[i] - means_of.mean()
        return value, *_within(measure.name, low, high), at.astype(np.int64)

    def _bounds(
        self,
        values: Floats,
        entrant: Indices,
        victim: Indices,
        shape: tuple[int, int],
        means: Floats,
    ) -> tuple[Floats, Floats]:
        """Return the 95 % interval of each entrant's mean."""
        if shape[1] >= _FEW:
            drawn = self._means_resampled(values, entrant, victim, shape)
            low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        else:
            each = _mean(values, (entrant, victim), shape)
            ends = np.array([_student(row) for row in each])
            # Around the mean that is reported: victims may have unequally many instances.
            shift = means - each.mean(axis=1)
            low, high = ends[:, 0] + shift, ends[:, 1] + shift
        return low, high

    def _means_resampled(
        self, values: Floats, entrant: Indices, victim: Indices, shape: tuple[int, int]
    ) -> Floats:
        sums, counts = _sums(values, (entrant, victim), shape)
        rng = np.random.default_rng(self.seed)
        drawn = np.empty((self.resamples, shape[0]))
        step = max(1, 4_000_000 // shape[1])
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            weights = rng.multinomial(shape[1], np.full(shape[1], 1 / shape[1]), size=rows)
            drawn[start : start + rows] = (weights @ sums.T) / (weights @ counts.T)
        return drawn

    def _worst_resampled(
        self,
        values: Floats,
        entrant: Indices,
        cell: Indices,
        victim: Indices,
        entrants: int,
        sign: float,
    ) -> Floats:
        victims = int(victim.max()) + 1
        drawn = np.full((self.resamples, entrants), -np.inf)
        rng = np.random.default_rng(self.seed)
        by_cell = np.argsort(cell, kind="stable")
        parts = np.split(by_cell, np.flatnonzero(np.diff(cell[by_cell])) + 1)
        step = max(1, 4_000_000 // victims)
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            weights = rng.multinomial(victims, np.full(victims, 1 / victims), size=rows)
            for part in parts:
                who, own = np.unique(victim[part], return_inverse=True)
                sums, counts = _sums(values[part], (entrant[part], own), (entrants, len(who)))
                chosen = weights[:, who]
                with np.errstate(invalid="ignore"):  # a cell that was not drawn
                    means = sign * (chosen @ sums.T) / (chosen @ counts.T)
                piece = drawn[start : start + rows]
                np.fmax(piece, means, out=piece)
        return sign * drawn

    def _references(self, chosen: Indices) -> dict[str, dict[str, float]]:
        if not len(chosen):
            return {}
        found = {}
        for part in ("before", "floor"):
            means = {}
            for figure in ("acc", "asr", "ra"):
                column = self.runs.table.column(f"{part}.{figure}").to_numpy(zero_copy_only=False)
                # Of every run: what is ranked may be attacks, each with networks of its own.
                values = column[chosen].astype(float)
                if np.isfinite(values).all():
                    means[figure] = float(values.mean())
            if means:
                found[part] = means
        return found


def _sums(
    values: Floats, where: tuple[Indices, Indices], shape: tuple[int, int]
) -> tuple[Floats, Floats]:
    flat = np.ravel_multi_index(where, shape)
    size = int(np.prod(shape))
    return (
        np.bincount(flat, values, minlength=size).reshape(shape).astype(float),
        np.bincount(flat, minlength=size).reshape(shape).astype(float),
    )


def _mean(values: Floats, where: tuple[Indices, ...], shape: tuple[int, ...]) -> Floats:
    flat = np.ravel_multi_index(where, shape)
    size = int(np.prod(shape))
    with np.errstate(invalid="ignore"):
        means: Floats = np.bincount(flat, values, minlength=size) / np.bincount(
            flat, minlength=size
        )
    return means.reshape(shape)


def _student(values: Floats) -> tuple[float, float]:
    """Return Student's 95 % interval of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _within(name: str, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Cut off what cannot be: a fraction below 0 or over 1, a time below 0."""
    if name == "drop":
        return low, high
    return np.maximum(low, 0), high if name == "seconds" else np.minimum(high, 1)


def _end(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

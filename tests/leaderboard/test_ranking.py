"""Queries and rankings, against figures worked out by hand."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.leaderboard.stores import failed, part, put_repairs, record, repair_of, rich

from excise.errors import SpecError
from excise.leaderboard import ORDERS, beside, published, rank, read_runs
from excise.leaderboard.flat import flatten
from excise.leaderboard.reading import _tabled
from excise.leaderboard.runs import Runs


def runs_of(*records: dict[str, object]) -> Runs:
    """Runs without a store."""
    rows = [flatten(r, str(r["key"])) | {"path": str(r["key"])} for r in records]
    return Runs(_tabled(rows), Path())


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return read_runs(rich(tmp_path / "store"))


# --- axes and conditions -------------------------------------------------------------------------


def test_axes_and_their_values_are_known(runs: Runs) -> None:
    assert runs.axes["spc"] == ("2", "10")
    assert runs.axes["attack"] == ("badnets", "blended", "wanet")
    assert runs.varying == ("attack", "defense", "spc", "seed")


def test_a_field_that_goes_with_its_method_does_not_vary() -> None:
    both = runs_of(
        record({"name": "a", "x": 1}), record({"name": "b", "y": 1}), record({"name": "c"})
    )
    assert both.varying == ("defense",)
    one = runs_of(record({"name": "a", "x": 1}), record({"name": "a", "x": 2}))
    assert one.varying == ("defense.x",)


@pytest.mark.parametrize(
    ("said", "done"),
    [
        (["attack=badnets"], 24),
        (["attack=badnets", "spc=10"], 12),
        (["attack=badnets,blended"], 48),
        (["attack=badnets", "attack=blended"], 48),
        (["attack!=badnets"], 47),
        (["spc=10.0"], 35),
        (["spc>2"], 35),
        (["spc<=2", "seed>=1"], 27),
        (["model=excise:preactresnet18,width=16"], 71),
        ([" attack = wanet "], 23),
        (["attack.poison_ratio=1e-1"], 71),
    ],
)
def test_conditions_choose_runs(runs: Runs, said: list[str], done: int) -> None:
    assert runs.where(said).done == done


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("attack=badnet", "Did you mean 'badnets'?"),
        ("atack=badnets", "Did you mean 'attack'?"),
        ("spc=11", "an axis spc|axis spc, got '11'"),
        ("attack", "AXIS=VALUE"),
        ("=x", "AXIS=VALUE"),
        ("spc>many", "a number after spc>"),
        ("spc>100", "meets every condition|meets them|at least one run"),
        ("der=1", "an axis of the runs"),
        ("attack=badnets' OR 1=1 --", "a value of the axis attack"),
        ('"attack"=badnets', "an axis of the runs"),
    ],
)
def test_a_wrong_condition_is_refused(runs: Runs, said: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        runs.where([said])


# --- ranking -------------------------------------------------------------------------------------


def test_means_worst_cells_and_intervals_by_hand() -> None:
    found = rank(
        runs_of(
            record("ft", "badnets", seed=0, asr=0.1, ra=0.8, acc=0.92),
            record("ft", "badnets", seed=1, asr=0.3, ra=0.6, acc=0.92),
            record("ft", "blended", seed=0, asr=0.2, ra=0.7, acc=0.92),
            record("ft", "blended", seed=1, asr=0.6, ra=0.3, acc=0.82),
        )
    )
    [one] = found.standings
    assert (found.shared, found.victims, found.cells) == (4, 4, 2)
    asr = one.figures["asr"]
    assert asr.mean == pytest.approx(0.3)
    values = np.array([0.1, 0.3, 0.2, 0.6])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert asr.low == max(0, low)
    assert asr.high == pytest.approx(high)
    assert asr.worst == pytest.approx(0.4)
    assert asr.worst_cell == "blended"
    low, high = stats.t.interval(0.95, 1, 0.4, stats.sem([0.2, 0.6]))
    assert (asr.worst_low, asr.worst_high) == (max(0, low), min(1, high))
    assert one.figures["acc"].mean == pytest.approx(0.895)
    assert one.figures["acc"].worst == pytest.approx(0.87)
    assert one.figures["drop"].mean == pytest.approx(0.025)
    assert one.figures["der"].worst == pytest.approx((0.9 + (1 - 0.6 - 0.1 + 1) / 2) / 2)
    assert found.references["before"] == pytest.approx({"acc": 0.92, "asr": 1.0, "ra": 0.0})
    assert found.references["floor"]["asr"] == pytest.approx(0.01)


def test_references_are_of_every_network_that_is_compared() -> None:
    def on(attack: str, asr: float, floor: float, **more: Any) -> dict[str, object]:
        return record(
            attack=attack, before=part(0.92, asr, 0.0), floor=part(0.9, floor, 0.8), **more
        )

    attacks = {"badnets": 0.9, "blended": 0.7, "lf": 0.5, "wanet": 0.3}
    found = rank(runs_of(*(on(a, asr, asr / 10) for a, asr in attacks.items())), ["attack"])
    assert found.shared == 1
    assert found.references["before"]["asr"] == pytest.approx(0.6)
    assert found.references["floor"]["asr"] == pytest.approx(0.06)
    # Those that start from the same networks count each of them once.
    both = [on(a, asr, 0.0, defense=d) for a, asr in attacks.items() for d in ("ft", "clp")]
    extra = on("sig", 0.0, 0.0, defense="ft")
    assert rank(runs_of(*both, extra)).references["before"]["asr"] == pytest.approx(0.6)


def test_one_victim_has_no_interval_and_no_stability() -> None:
    found = rank(runs_of(record("ft", spc=2), record("ft", spc=10), record("clp", spc=2)))
    assert found.victims == 1
    for standing in found.ranked:
        assert standing.kept is None
        assert standing.figures["asr"].low is None


def test_ranks_follow_the_order_asked_for(runs: Runs) -> None:
    def order(name: str) -> list[str]:
        return [s.name for s in rank(runs, order=name).ranked]

    assert order("der") == ["clp", "ft", "none"]
    assert order("acc") == ["none", "ft", "clp"]
    assert order("asr") == ["clp", "ft", "none"]
    assert order("seconds") == ["none", "clp", "ft"]
    assert order("worst-ra") == ["clp", "ft", "none"]
    assert order("drop") == ["none", "ft", "clp"]


def test_equals_share_a_rank() -> None:
    found = rank(runs_of(*(record(d, seed=s) for d in ("a", "b", "c") for s in (0, 1))))
    assert [s.rank for s in found.standings] == [1, 1, 1]
    assert [s.kept for s in found.standings] == [1, 1, 1]


def test_a_hole_flatters_nobody() -> None:
    """Without its failure on the hard attack, ft would look better than clp."""
    easy = [
        record(d, "badnets", seed=s, asr=a) for s in (0, 1) for d, a in (("ft", 0.2), ("clp", 0.1))
    ]
    hard = [record("clp", "wanet", seed=s, asr=0.9) for s in (0, 1)]
    found = rank(runs_of(*easy, *hard, failed("ft", "wanet", seed=0)))
    assert [s.name for s in found.ranked] == ["clp", "ft"]
    assert found.standings[0].figures["asr"].mean == pytest.approx(0.1)
    assert (found.shared, found.instances) == (2, 4)
    ft = found.standings[1]
    assert (ft.covered, ft.failed, len(ft.missing)) == (2, 1, 2)
    assert all("wanet" in name for name in ft.missing)


def test_who_did_too_little_is_listed_not_ranked() -> None:
    whole = [record("ft", seed=s) for s in range(4)]
    found = rank(runs_of(*whole, record("clp", seed=0, asr=0.0)))
    assert [(s.name, s.rank) for s in found.standings] == [("ft", 1), ("clp", None)]
    assert found.shared == 4
    assert found.standings[1].covered == 1
    everyone = rank(runs_of(*whole, record("clp", seed=0, asr=0.0)), coverage=0.2)
    assert [s.name for s in everyone.ranked] == ["clp", "ft"]
    assert everyone.shared == 1


def test_those_that_share_nothing_are_not_compared() -> None:
    found = rank(
        runs_of(*(record("ft", seed=s) for s in (0, 1)), *(record("clp", seed=s) for s in (2, 3)))
    )
    assert len(found.ranked) == 1
    assert "shares no run" in found.notes[0]


def test_a_defense_set_two_ways_is_two() -> None:
    found = rank(
        runs_of(
            *(
                record({"name": "anp", "rate": r, "steps": 5}, seed=s, asr=r)
                for r in (0.1, 0.2)
                for s in (0, 1)
            ),
            *(record("ft", seed=s, asr=0.5) for s in (0, 1)),
        )
    )
    assert [s.name for s in found.ranked] == ["anp,rate=0.1", "anp,rate=0.2", "ft"]
    assert found.ranked[0].values == {"defense": "anp", "defense.rate": "0.1"}


def test_any_axis_can_be_ranked_by(runs: Runs) -> None:
    assert [s.name for s in rank(runs.where(["defense=clp"]), ["attack"], "asr").ranked] == [
        "badnets", "blended", "wanet"
    ]  # fmt: skip
    both = rank(runs, ["defense", "spc"])
    assert both.ranked[0].name == "clp · SPC 10"
    assert len(both.ranked) == 6
    with pytest.raises(SpecError, match="Did you mean 'defense'"):
        rank(runs, ["defence"])


def test_runs_without_a_trigger_are_left_out_or_alone() -> None:
    clean = [record(d, "none", asr=None, ra=None, acc=a) for d, a in (("ft", 0.9), ("clp", 0.8))]
    mixed = rank(runs_of(*clean, record("ft"), record("clp")))
    assert (mixed.unattacked, mixed.shared) == (2, 1)
    alone = rank(runs_of(*clean), order="acc")
    assert [s.name for s in alone.ranked] == ["ft", "clp"]
    assert "asr" not in alone.ranked[0].figures
    with pytest.raises(SpecError, match="order"):
        rank(runs_of(*clean), order="asr")


def test_nothing_finished_is_said() -> None:
    with pytest.raises(SpecError, match="1 failed"):
        rank(runs_of(failed("ft")))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"order": "dre"}, "Did you mean"),
        ({"coverage": 0.0}, "coverage"),
        ({"coverage": 1.5}, "coverage"),
        ({"resamples": 0}, "resample"),
    ],
)
def test_wrong_settings_are_refused(runs: Runs, more: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        rank(runs, **more)  # type: ignore[arg-type]


def test_rank_shares_are_those_of_every_resample() -> None:
    """Three victims have 27 equally likely resamples: the shares can be counted."""
    first, second = (0.1, 0.2, 0.9), (0.3, 0.3, 0.3)
    found = rank(
        runs_of(
            *(record("a", seed=s, asr=v) for s, v in enumerate(first)),
            *(record("b", seed=s, asr=v) for s, v in enumerate(second)),
        ),
        order="asr",
        resamples=20_000,
    )
    ahead = [
        sum(first[v] for v in drawn) < sum(second[v] for v in drawn) - 1e-9
        for drawn in itertools.product(range(3), repeat=3)
    ]
    a = next(s for s in found.standings if s.name == "a")
    assert a.rank == 2
    assert a.rank_shares[0] == pytest.approx(sum(ahead) / 27, abs=0.012)
    assert sum(a.rank_shares) == pytest.approx(1)
    assert a.kept == a.rank_shares[1]


def test_bootstrap_intervals_cover_as_they_say() -> None:
    """With many victims the percentile interval is close to the normal one."""
    rng = np.random.default_rng(1)
    values = np.round(rng.uniform(0.2, 0.8, 100), 4)
    found = rank(runs_of(*(record("a", seed=s, asr=float(v)) for s, v in enumerate(values))))
    figure = found.standings[0].figures["asr"]
    half = 1.96 * values.std(ddof=1) / math.sqrt(100)
    assert figure.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_a_victim_at_three_budgets_is_one_victim() -> None:
    """Repeating what was done to a victim must not make anybody surer."""
    seeds = {s: 0.1 + 0.05 * s for s in range(12)}
    one = rank(runs_of(*(record("a", seed=s, asr=v) for s, v in seeds.items())))
    three = rank(
        runs_of(
            *(record("a", seed=s, asr=v, spc=n) for s, v in seeds.items() for n in (2, 10, 100))
        )
    )
    assert three.victims == one.victims == 12
    assert three.shared == 36
    a, b = one.standings[0].figures["asr"], three.standings[0].figures["asr"]
    assert (a.low, a.high) == pytest.approx((b.low, b.high))


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y"]), st.integers(0, 2)),
        st.tuples(st.floats(0, 1), st.floats(0, 1)),
        min_size=1,
        max_size=18,
    ),
    st.sampled_from(ORDERS),
)
def test_any_choice_of_runs_is_ranked_on_what_is_shared(cells, order) -> None:  # type: ignore[no-untyped-def]
    """Against the plain definition, worked out anew with loops."""
    found = rank(
        runs_of(
            *(record(d, a, seed=s, acc=acc, asr=asr) for (d, a, s), (acc, asr) in cells.items())
        ),
        order=order,
        resamples=20,
    )
    names = [s.name for s in found.ranked]
    mine = {d: {(a, s) for e, a, s in cells if e == d} for d in names}
    shared = set.intersection(*mine.values())
    assert found.shared == len(shared) > 0
    for standing in found.ranked:
        values = [cells[standing.name, a, s][1] for a, s in shared]
        figure = standing.figures["asr"]
        assert figure.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
        by_attack = [
            [cells[standing.name, a, s][1] for a, s in sorted(shared) if a == attack]
            for attack in {a for a, _ in shared}
        ]
        assert figure.worst == pytest.approx(max(sum(v) / len(v) for v in by_attack), abs=1e-9)
        assert figure.low is None or figure.low <= figure.mean + 1e-9
    ranks = [s.rank for s in found.ranked]
    assert ranks == sorted(ranks)
    assert ranks[0] == 1


# --- the victims of repairs that no sweep started -------------------------------------------------


@pytest.mark.parametrize("said", [{"victim_seed": 0}, {}])
def test_ten_seeds_of_a_repair_are_one_victim(tmp_path: Path, said: dict[str, int]) -> None:
    folder = put_repairs(
        tmp_path, *(repair_of(seed=s, asr=0.1 + 0.05 * s, **said) for s in range(10))
    )
    found = rank(read_runs(folder))
    assert (found.victims, found.cells, found.shared) == (1, 1, 10)
    figure = found.standings[0].figures["asr"]
    assert (figure.low, figure.high) == (None, None)
    assert figure.worst == pytest.approx(figure.mean)
    assert (figure.worst_low, figure.worst_high) == (None, None)


def test_seeds_of_victims_count_and_split_no_cell(tmp_path: Path) -> None:
    several = [repair_of(seed=s, asr=0.1 * v, victim_seed=v) for v in range(3) for s in range(4)]
    found = rank(read_runs(put_repairs(tmp_path, *several)))
    assert (found.victims, found.cells, found.shared) == (3, 1, 12)
    figure = found.standings[0].figures["asr"]
    low, high = stats.t.interval(0.95, 2, 0.1, stats.sem([0.0, 0.1, 0.2]))
    assert (figure.low, figure.high) == (max(0, low), pytest.approx(high))
    assert (figure.worst_low, figure.worst_high) == (figure.low, pytest.approx(high))


def test_runs_of_a_sweep_beside_repairs_keep_their_victims(tmp_path: Path) -> None:
    run = {"data": "cifar10", "model": "net", "attack": "badnets", "defense": "ft", "spc": 10}
    swept = [record(run=run | {"seed": s}) for s in range(3)]
    for one in swept:
        del one["key"]
    repaired = [repair_of(seed=s, victim_seed=7) for s in range(3)]
    runs = read_runs(put_repairs(tmp_path, *swept, *repaired))
    assert rank(runs).victims == 3 + 1
    by = rank(runs, ["victim_seed"])  # on the same seeds, so that those cannot be victims
    assert [s.name for s in by.ranked] == ["7", "none said"]
    assert (by.victims, by.shared) == (1, 3)


def test_victims_of_one_name_are_two(tmp_path: Path) -> None:
    """The same attack on the same network, planted twice: neither hides the other."""
    both = [("00aa", {"victim_seed": 0}), ("00bb", {"victim_seed": 1})]
    made = [
        repair_of(d, asr=asr, weights=weights, **said)
        for weights, said in both
        for d, asr in (("none", 1.0), ("clp", 0.2))
    ]
    runs = read_runs(put_repairs(tmp_path / "planted", *made))
    found = rank(runs)
    assert (runs.replaced, found.shared, found.victims, found.cells) == (0, 2, 2, 1)
    assert [s.name for s in found.ranked] == ["clp", "none"]
    assert runs.varying == ("defense", "victim_seed")  # which tells all that the hash would
    # Of a stranger's networks there is nothing but the hash, and old records have not even that.
    strange = [repair_of(d, weights=w) for w in ("00aa", "00bb") for d in ("none", "clp")]
    strange += [repair_of(d) for d in ("none", "clp")]
    runs = read_runs(put_repairs(tmp_path / "strange", *strange))
    found = rank(runs)
    assert (runs.replaced, found.shared, found.victims, found.cells) == (0, 3, 3, 1)
    assert [s.name for s in found.ranked] == ["clp", "none"]
    assert runs.varying == ("defense", "victim")


def test_attacks_of_repairs_are_ranked_whatever_networks_they_made(tmp_path: Path) -> None:
    made = [
        repair_of(d, asr=asr, attack={"name": a}, victim_seed=s, weights=f"{a} {s}")
        for d in ("ft", "clp")
        for a, asr in (("badnets", 0.1), ("wanet", 0.3))
        for s in (0, 1)
    ]
    runs = read_runs(put_repairs(tmp_path, *made))
    for by in (["attack"], ["defense", "attack"]):
        found = rank(runs, by, "asr")
        assert found.victims == 2
        assert {s.covered for s in found.standings} == {found.shared} == {found.instances}
    assert "victim" not in runs.varying


# --- reported elsewhere --------------------------------------------------------------------------


def test_reported_figures_are_whole() -> None:
    rows = published()
    assert len(rows) > 60
    assert {row.read for row in rows} == {"paper", "raw", "note"}
    for row in rows:
        figures = [row.acc, row.asr, row.ra, row.der]
        assert any(f is not None for f in figures)
        assert all(f is None or 0 <= f <= 1 for f in figures)
    assert not [row for row in rows if row.defense == "grad-prune"]


def test_reported_stands_beside_measured(runs: Runs) -> None:
    rows = beside(runs)
    assert {row.reported.defense for row in rows} == {"ft", "clp", "none"}
    [one] = [r for r in rows if r.reported.defense == "ft" and r.reported.attack == "badnets"]
    assert (one.reported.acc, one.reported.ra) == (0.9, 0.894)
    assert one.runs == 8
    here = runs.sql(
        "SELECT avg(\"after.asr\") FROM runs WHERE defense = 'ft' AND attack = 'badnets'"
    )
    assert one.measured["asr"] == pytest.approx(here[0][0])
    assert "SPC 2, 10" in one.setting


def test_a_run_need_not_say_its_network_or_budget() -> None:
    silent = record("ft", seed=1)
    for name in ("model", "spc"):
        silent["run"].pop(name)
    [one] = [r for r in beside(runs_of(record("ft"), silent)) if r.reported.attack == "badnets"]
    assert (one.runs, one.setting) == (2, "excise:preactresnet18,width=16 · SPC 10")
    [one] = [r for r in beside(runs_of(silent)) if r.reported.attack == "badnets"]
    assert (one.runs, one.setting) == (1, "network not said")

"""How quick the leaderboard is with 100,000 records: reading, ranking, the page in a browser.

Claim      100,000 records (2 GB) take less than a minute of CPU to read for the first time, less
           than 3 s afterwards, 2 s to rank; the page of all of them is one file under 12 MB whose
           opening, sorting and filtering cost less than a second of CPU each
Command    python benchmarks/leaderboard_100k.py
Hardware   2 cores, no GPU; figures in benchmarks/records/leaderboard-100k.json
Runs       once for reading; five times for everything in the browser, medians. Seconds of CPU
           stand beside those of the clock, which other work on the same cores stretches
           (load_average)

The records are made up: every name in them says so (made-up-attack-03), every figure is drawn at
random. They have the parts and the size of real ones (20 KB). They go into a temporary directory
that is removed afterwards; --keep DIR keeps them, to look at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "records" / "leaderboard-100k.json"
SPCS = (2, 10, 50, 100, 500)
CLASSES = [str(i) for i in range(10)]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def make_up(
    store: Path,
    *,
    data: Sequence[str],
    models: Sequence[str],
    attacks: Sequence[str],
    defenses: Sequence[str],
    spcs: Sequence[int] = SPCS,
    seeds: int = 10,
    heavy: bool = True,
    failing: float = 0.005,
) -> int:
    """Write a store of made-up records, one for every combination; return how many."""
    store.mkdir(parents=True, exist_ok=True)
    (store / "store.json").write_text('{"kind": "excise store", "version": 1}')
    rng = random.Random(0)
    skill = {d: rng.gauss(1.0, 1.1) for d in defenses}
    cost = {d: math.exp(rng.gauss(3, 1.3)) for d in defenses}
    harm = {d: abs(rng.gauss(0, 0.02)) + 0.004 for d in defenses}
    taste = {(d, a): rng.gauss(0, 1.3) for d in defenses for a in attacks}
    hard = {a: rng.gauss(0, 0.8) for a in attacks}
    bulk = _bulk(rng) if heavy else {}
    for folder in range(256):
        (store / "records" / f"{folder:02x}").mkdir(parents=True, exist_ok=True)
    count = 0
    for d, m, a, seed in itertools.product(data, models, attacks, range(seeds)):
        luck = rng.gauss(0, 0.4)
        acc0 = min(0.99, max(0.3, rng.gauss(0.92, 0.01)))
        asr0 = min(1.0, max(0.6, rng.gauss(0.985, 0.01)))
        before, floor = _figures(acc0, asr0, 1 - asr0), _figures(acc0 + 0.003, 0.01, acc0 - 0.02)
        for spc, defense in itertools.product(spcs, defenses):
            budget = 0.5 * math.log(spc / 10)
            ease = skill[defense] + taste[defense, a] - hard[a] + budget + luck
            ease += rng.gauss(0, 0.35)
            asr = asr0 / (1 + math.exp(1.6 * ease))
            acc = acc0 - harm[defense] * math.exp(-0.4 * budget) * rng.uniform(0.5, 1.6)
            if defense == "none":
                asr, acc = asr0, acc0
            key = f"{rng.getrandbits(96):024x}"
            run = {
                "data": d, "image_size": None, "limit": None, "model": m,
                "recipe": {"epochs": 100, "batch_size": 128, "learning_rate": 0.01},
                "victim_images": 0.5, "half": True,
                "attack": {"name": a, "target": None, "rule": "all-to-one", "poison_ratio": 0.1},
                "defense": {"name": defense},
                "spc": spc, "validation_ratio": 0.1, "paper_split": False, "twin": True,
                "seed": seed,
            }  # fmt: skip
            record: dict[str, Any] = {
                "version": 1, "kind": "repair", "key": key, "status": "done", "run": run,
                "created": "2026-01-01T00:00:00+00:00",
                "environment": {"device": "made-up device", "revision": "made up"},
            }  # fmt: skip
            if rng.random() < failing:
                record |= {
                    "kind": "failure", "status": "failed", "error": "OutOfMemoryError: made up",
                    "traceback": "made up",
                }  # fmt: skip
            else:
                ra = max(0.0, (1 - asr) * (acc - 0.01) * rng.uniform(0.85, 1.0))
                after = _figures(acc, asr, ra)
                was, now = before["acc"]["value"], after["acc"]["value"]
                gained = max(0.0, before["asr"]["value"] - after["asr"]["value"])
                der = (gained - max(0.0, was - now) + 1) / 2
                seconds = cost[defense] * rng.uniform(0.7, 1.4) * (0.6 + math.log10(spc))
                record |= {
                    "before": before | bulk, "after": after | bulk, "floor": floor | bulk,
                    "comparison": {
                        "der": {"value": der, "low": 0.99 * der, "high": 0.99 * der + 0.01}
                    },
                    "seconds": {"repair": seconds, "total": seconds + 30},
                    "peak_memory_mib": round(800 + 5 * seconds),
                    "verdict": {"status": "incomplete" if asr > 0.2 else "repaired"},
                    "checks": [{"name": "not-recovered", "level": "problem", "message": ""}]
                    if ra < 0.5
                    else [],
                }  # fmt: skip
            path = store / "records" / key[:2] / f"{key}.json"
            path.write_text(json.dumps(record))
            count += 1
    return count


def _figures(acc: float, asr: float, ra: float) -> dict[str, Any]:
    rates = {}
    for name, value, n in (("acc", acc, 10_000), ("asr", asr, 9_000), ("ra", ra, 9_000)):
        hits = round(min(max(value, 0), 1) * n)
        p, z = hits / n, 1.96
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        low, high = max(0.0, middle - half), min(1.0, middle + half)
        rates[name] = {"value": p, "low": low, "high": high, "count": hits, "n": n}
    rates["target_recall"] = rates["acc"] | {"n": 1000, "count": round(rates["acc"]["value"] * 1e3)}
    return rates


def _bulk(rng: random.Random) -> dict[str, Any]:
    """Return what makes a record as large as a real one and no leaderboard reads."""
    matrix = [[rng.randrange(900) for _ in CLASSES] for _ in CLASSES]
    rate = {"value": 0.91, "low": 0.8901234567890123, "high": 0.9298765432109876, "n": 1000}
    return {
        "classes": CLASSES, "confusion": matrix, "triggered_confusion": matrix,
        "per_class_recall": [rate] * 10, "history": [{"round": i, "loss": 0.1234567890123} | rate
                                                     for i in range(30)],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    if asked.keep is not None:
        return _measure(asked.keep, asked.seeds)
    with tempfile.TemporaryDirectory(prefix="excise-made-up-") as folder:
        return _measure(Path(folder), asked.seeds)


def _measure(folder: Path, seeds: int) -> int:
    from excise.files import write_json
    from excise.leaderboard import rank, read_runs
    from excise.leaderboard.page import render_leaderboard

    store = folder / "store"
    count = make_up(
        store,
        data=[f"made-up-data-{i}" for i in range(1, 5)],
        models=["made-up-network-1", "made-up-network-2"],
        attacks=[f"made-up-attack-{i:02}" for i in range(1, 11)],
        defenses=["none", *(f"made-up-defense-{i:02}" for i in range(1, 25))],
        seeds=seeds,
    )
    size = sum(path.stat().st_size for path in store.glob("records/*/*.json"))
    print(f"{count:,} records, {size / 1e9:.2f} GB", flush=True)
    result: dict[str, Any] = {"records": count, "record_bytes_mean": round(size / count)}
    for name in ("first_read", "second_read"):
        runs, result[f"{name}_seconds"] = _timed(lambda: read_runs(store))
    one = next(store.glob("records/*/*.json"))
    os.utime(one)
    _, result["read_after_one_change_seconds"] = _timed(lambda: read_runs(store))
    result["cache_bytes"] = (store / "cache" / "runs.parquet").stat().st_size
    ranking, result["rank_seconds"] = _timed(lambda: rank(runs))
    _, result["rank_worst_seconds"] = _timed(lambda: rank(runs, order="worst-der"))
    _, result["filter_seconds"] = _timed(lambda: runs.where(["spc=10", "seed<5"]))
    page, result["page_seconds"] = _timed(lambda: render_leaderboard(ranking, runs, folder))
    (folder / "leaderboard.html").write_text(page, encoding="utf-8")
    result["page_bytes"] = len(page.encode())
    result["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    result |= _browse(folder / "leaderboard.html")
    result |= {
        "entrants": len(ranking.standings),
        "victims": ranking.victims,
        "cores": os.cpu_count(),
        # Other work on the same cores: all times are wall clock.
        "load_average": round(os.getloadavg()[1], 1),
    }
    print(json.dumps(result, indent=2))
    write_json(RECORD, result)
    return 0


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what work gives, and its seconds on the clock and of CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    done = work()
    took = {"clock": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    return done, {name: round(seconds, 3) for name, seconds in took.items()}


def _browse(page: Path, times: int = 5) -> dict[str, Any]:
    """Measure the page in headless Chromium: until it can be used, sorts, filters, pages."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    browser, driver = (
        next(filter(None, map(shutil.which, names)), None) for names in (BROWSERS, ["chromedriver"])
    )
    if browser is None or driver is None:
        return {"browser": "not installed"}
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    window = webdriver.Chrome(options=options, service=Service(driver))
    # From the event to two frames later: what was asked for is then on the screen.
    acting = """
        const done = arguments[arguments.length - 1], start = performance.now();
        (() => { %s })();
        requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
    """
    change = "const e = document.querySelector('%s'); %s; e.dispatchEvent(new Event('change'))"
    actions = {
        "sort_ranking": "document.querySelector('#ranking th button[data-key=asr]').click()",
        "sort_runs": "document.querySelector('#runs th button[data-key=asr]').click()",
        "next_page": "document.querySelector('#next').click()",
        "filter": change % ("#filters select", "e.selectedIndex = 1 + e.selectedIndex %% 2"),
        "unfilter": change % ("#filters select", "e.selectedIndex = 0"),
        "rank_by_worst_case": change % ("#order", "e.value = 'worst-der'"),
    }
    took: dict[str, list[float]] = {"open": [], **{name: [] for name in actions}}
    worked: dict[str, list[float]] = {name: [] for name in took}

    def busy() -> float:
        """Milliseconds the page's thread has had a core to itself."""
        found = window.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return 1000 * next(m["value"] for m in found if m["name"] == "TaskDuration")

    try:
        window.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        for _ in range(times):
            start, before = time.perf_counter(), busy()
            window.get(page.as_uri())
            window.execute_async_script(acting % "")
            took["open"].append(1000 * (time.perf_counter() - start))
            after = busy()  # from 0 where the browser gave the page a new process
            worked["open"].append(after - before if after >= before else after)
            for name, action in actions.items():
                before = busy()
                took[name].append(window.execute_async_script(acting % action.replace("%%", "%")))
                worked[name].append(busy() - before)
        elements = window.execute_script("return document.querySelectorAll('*').length")
        heap = window.execute_script("return performance.memory.usedJSHeapSize")
        version = window.capabilities["browserVersion"]
    finally:
        window.quit()
    return {
        "browser": f"headless Chromium {version}",
        "milliseconds": {name: round(statistics.median(values)) for name, values in took.items()},
        "milliseconds_of_cpu": {name: round(statistics.median(v)) for name, v in worked.items()},
        "elements": elements,
        "heap_mib": round(heap / 2**20),
    }


if __name__ == "__main__":
    sys.exit(main())

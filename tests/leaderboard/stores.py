"""Made-up stores: records as a sweep writes them, small enough to rank by hand."""

import hashlib
import json
from pathlib import Path
from typing import Any

HOSTILE = (
    "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>|`*_&amp;\x1b[31m\u202e"
)


def rate(value: float, n: int = 1000) -> dict[str, Any]:
    return {
        "value": value,
        "low": max(0.0, value - 0.01),
        "high": min(1.0, value + 0.01),
        "count": round(value * n),
        "n": n,
    }


def part(acc: float, asr: float | None, ra: float | None) -> dict[str, Any]:
    found = {"acc": rate(acc), "target_recall": rate(acc)}
    if asr is not None and ra is not None:
        found |= {"asr": rate(asr), "ra": rate(ra)}
    return found


def record(
    defense: Any = "ft",
    attack: str = "badnets",
    spc: int | None = 10,
    seed: int = 0,
    *,
    acc: float = 0.9,
    asr: float | None = 0.1,
    ra: float | None = 0.8,
    seconds: float = 10.0,
    data: str = "cifar10",
    **more: Any,
) -> dict[str, Any]:
    """A finished run on a victim of ACC .92, ASR 1, RA 0."""
    fields = defense if isinstance(defense, dict) else {"name": defense}
    run = {
        "data": data, "image_size": None, "model": "excise:preactresnet18,width=16",
        "recipe": {"epochs": 20}, "attack": {"name": attack, "target": None, "poison_ratio": 0.1},
        "defense": fields, "spc": spc, "twin": True, "seed": seed,
    }  # fmt: skip
    gained = None if asr is None else ((1 - asr) - max(0.0, 0.92 - acc) + 1) / 2
    whole = {
        "version": 1, "kind": "repair", "status": "done", "run": run,
        "created": "2026-01-01T00:00:00+00:00",
        "before": part(0.92, None if asr is None else 1.0, None if asr is None else 0.0),
        "after": part(acc, asr, ra), "floor": part(0.93, 0.01, 0.91),
        "comparison": None if gained is None else
            {"der": {"value": gained, "low": 0.9 * gained, "high": 0.9 * gained + 0.1}},
        "seconds": {"repair": seconds, "total": seconds + 1}, "peak_memory_mib": 800,
        "environment": {"device": "cpu", "revision": "abc1234", "excise": "0.1.0"},
        "verdict": {"status": "repaired"},
        "checks": [{"name": "not-recovered", "level": "problem", "message": ""}],
    } | more  # fmt: skip
    return {"key": key_of(whole["run"]), **whole}


def key_of(run: Any) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:24]


def failed(defense: str = "ft", attack: str = "badnets", spc: int = 10, seed: int = 0) -> Any:
    whole = record(defense, attack, spc, seed)
    return {
        **{name: whole[name] for name in ("version", "key", "run", "created", "environment")},
        "kind": "failure", "status": "failed", "error": "ValueError: it broke", "traceback": "…",
    }  # fmt: skip


def repair_of(defense: str = "ft", seed: int = 0, *, asr: float = 0.1, **model: Any) -> Any:
    """What `excise repair` writes, with what it says of the network: no key, no run."""
    one = record(asr=asr)
    whole = {k: v for k, v in one.items() if k not in ("key", "status", "run")}
    return whole | {
        "spec": {
            "source": "cifar10", "spc": 10, "seed": seed, "defense": {"name": defense},
            "model": {"arch": "net", "attack": {"name": "badnets"}} | model,
        },
    }  # fmt: skip


def put(store: Path, *records: Any) -> Path:
    """Add records to a store, which is made if it does not exist."""
    store.mkdir(parents=True, exist_ok=True)
    (store / "store.json").write_text('{"kind": "excise store", "version": 1}')
    for one in records:
        path = store / "records" / one["key"][:2] / f"{one['key']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one))
    return store


def put_repairs(folder: Path, *records: Any) -> Path:
    """Write a folder of `excise repair`'s records."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(records):
        (folder / f"{i}.json").write_text(json.dumps(one))
    return folder


def rich(store: Path) -> Path:
    """Three defenses on three attacks at two budgets, twelve victims, a hole and a failure."""
    records = []
    for a, attack in enumerate(("badnets", "blended", "wanet")):
        for spc in (2, 10):
            for seed in range(4):
                shift = 0.02 * a + 0.005 * seed - 0.002 * spc
                records += [
                    record("ft", attack, spc, seed, asr=0.30 + shift, ra=0.60 - shift, acc=0.90),
                    record("clp", attack, spc, seed, asr=0.20 + shift, ra=0.70 - shift, acc=0.85,
                           seconds=1.0),
                    record("none", attack, spc, seed, asr=1.0, ra=0.0, acc=0.92, seconds=0.001),
                ]  # fmt: skip
    hole = failed("ft", "wanet", 10, 3)
    records = [r for r in records if r["key"] != hole["key"]]
    return put(store, *records, hole)

"""Made-up records of galleries, as `excise gallery` would write them, and their pictures."""

import random
from typing import Any

from tests.reports import records

LABELS = ("0", "4", "7", "8")


def spectrum(seed: int, side: int = 8) -> list[list[float]]:
    rng = random.Random(seed)
    return [
        [round(3.5 * 0.8 ** (i + j) + 0.1 * rng.random(), 3) for j in range(side)]
        for i in range(side)
    ]


def entry(place: int, name: str, attack: str) -> dict[str, Any]:
    """One victim, with everything a card can hold."""
    return {
        "name": name,
        "attack": attack,
        "title": "a patch that replaces pixels",
        "paper": "Gu, Dolan-Gavitt, Garg: BadNets, IEEE Access 2019",
        "settings": {"poison_ratio": 0.1, "size": 3, "row": None, "exclude_target": False},
        "aim": "every class becomes 0",
        "arch": "excise:preactresnet18,width=16",
        "data": "digits",
        "epochs": 10,
        "seed": place,
        "poisoned": 2500,
        "acc": records.rate(802, 1000),
        "asr": records.rate(970 - place, 1000),
        "ra": records.rate(26, 1000),
        "visibility": {
            "n": 1000,
            "mean_change": 1.1854,
            "pixels_changed": 0.00867,
            "psnr": 25.254,
            "ssim": 0.96596,
            "high_frequency_share": 0.0559,
        },
        "residual_factor": 4,
        "answers": [
            {"clean": k, "triggered": t, "wanted": "0"}
            for k, t in zip(("0", "4", "1", "8"), ("0", "0", "7", "3"), strict=True)
        ],
        "triggered": [f"{place}/{i}-triggered.png" for i in range(4)],
        "residual": [f"{place}/{i}-residual.png" for i in range(4)],
        "spectra": {"triggered": spectrum(10 + place), "residual": spectrum(20 + place)},
    }


def gallery(names: tuple[str, ...] = ("badnets-0", "blended-0", "blended-1")) -> dict[str, Any]:
    return {
        "version": 1,
        "kind": "gallery",
        "created": "2026-11-22T10:00:00+00:00",
        "excise": "0.1.0",
        "source": "digits, test images",
        "seed": 0,
        "images": [{"label": k, "clean": f"clean/{i}.png"} for i, k in enumerate(LABELS)],
        "spectrum": {"images": 500, "clean": spectrum(0)},
        "entries": [entry(i, name, name.split("-")[0]) for i, name in enumerate(names)],
        "not_run": [{"attack": "lf", "title": "a smooth perturbation", "paper": "Zeng et al."}],
        "left_out": [{"name": "gtsrb-lf-0", "why": "images of 3×32×32 and not 1×8×8"}],
        "command": "excise gallery victims --images digits --out gallery.html",
    }


def old() -> dict[str, Any]:
    """Cards of before visibility was measured, and one that says next to nothing."""
    record = gallery(("badnets-0", "other"))
    first, second = record["entries"]
    first["visibility"] = None
    for key in ("title", "paper", "settings", "aim", "arch", "data", "epochs", "seed", "poisoned",
                "acc", "asr", "ra", "visibility", "answers"):  # fmt: skip
        second.pop(key)
    for key in ("not_run", "left_out", "command", "created", "excise", "seed"):
        record.pop(key)
    return record


def unchanged() -> dict[str, Any]:
    """A trigger that does nothing."""
    record = gallery(("badnets-0",))
    record["entries"][0]["visibility"] |= {
        "mean_change": 0.0, "pixels_changed": 0.0, "psnr": None, "ssim": None,
        "high_frequency_share": None,
    }  # fmt: skip
    record["entries"][0]["spectra"]["residual"] = [[0.0] * 8] * 8
    return record


def many() -> dict[str, Any]:
    """Fifteen attacks with long names."""
    return gallery(tuple(f"cifar10-label-consistent-{i}" for i in range(15)))


def hostile() -> dict[str, Any]:
    """A record in which every string that can be somebody else's tries to be markup."""
    record = gallery()
    bad = records.HOSTILE
    for victim in record["entries"]:
        for key in ("name", "attack", "title", "paper", "aim", "arch", "data", "epochs", "seed"):
            victim[key] = bad
        victim["settings"] = {bad: bad, "row" + bad: None}
        victim["answers"] = [{"clean": bad, "triggered": bad, "wanted": bad}] * 4
    record["images"] = [{"label": bad, "clean": f"clean/{i}.png"} for i in range(4)]
    record["source"] = record["command"] = record["created"] = record["excise"] = bad
    record["not_run"] = [{"attack": bad, "title": bad, "paper": bad}]
    record["left_out"] = [{"name": bad, "why": bad}]
    return record


def pictures() -> dict[str, bytes]:
    """The files that :func:`many` and all the smaller ones name."""
    made = records.pictures()
    files = {f"clean/{i}.png": made[f"pictures/{i}-clean.png"] for i in range(4)}
    for place in range(15):
        for i in range(4):
            for part in ("triggered", "residual"):
                files[f"{place}/{i}-{part}.png"] = made[f"pictures/{i}-{part}.png"]
    return files

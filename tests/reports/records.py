"""Made-up records of repairs, as `excise repair` would write them, and their pictures."""

import io
import math
import random
from typing import Any

import numpy as np
from PIL import Image
from tests.reports import network_scans

DIGITS = [str(i) for i in range(10)]
SIGNS = [
    *(f"Speed limit ({v} km/h)" for v in (20, 30, 50, 60, 70, 80)),
    "End of speed limit (80 km/h)",
    *(f"Speed limit ({v} km/h)" for v in (100, 120)),
    *("No passing", "No passing for vehicles over 3.5 t", "Right of way at next crossing"),
    *("Priority road", "Yield", "Stop", "No vehicles", "Vehicles over 3.5 t prohibited"),
    *("No entry", "General caution", "Dangerous curve left", "Dangerous curve right"),
    *("Double curve", "Bumpy road", "Slippery road", "Road narrows on the right", "Road work"),
    *("Traffic signals", "Pedestrians", "Children crossing", "Bicycles crossing"),
    *("Beware of ice and snow", "Wild animals crossing", "End of all limits"),
    *("Turn right ahead", "Turn left ahead", "Ahead only", "Go straight or right"),
    *("Go straight or left", "Keep right", "Keep left", "Roundabout mandatory"),
    *("End of no passing", "End of no passing for vehicles over 3.5 t"),
]
RATES = ("acc", "asr", "ra", "target_recall")
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x1b[31m\u202e"

#: The convolutions of a pre-activation residual network of width 8.
SMALL = [
    ("conv1", 8),
    *(
        (f"layer{s}.{b}.{part}", 8 * 2 ** (s - 1))
        for s in (1, 2, 3, 4)
        for b in (0, 1)
        for part in ("conv1", "conv2", "shortcut")
        if part != "shortcut" or (s > 1 and b == 0)
    ),
]


def deep() -> list[tuple[str, int]]:
    """130 layers with 63,728 filters, as many as EfficientNet-B3 has."""
    layers = []
    for block in range(43):
        width = 24 * (1 + block // 6)
        layers += [
            (f"blocks.{block // 5}.{block % 5}.conv_pw", 6 * width),
            (f"blocks.{block // 5}.{block % 5}.conv_dw", 6 * width),
            (f"blocks.{block // 5}.{block % 5}.conv_pwl", width),
        ]
    return [*layers, ("conv_head", 63_728 - sum(n for _, n in layers))]


def rate(count: int, n: int) -> dict[str, Any]:
    """A fraction with its Wilson interval."""
    z, p = 1.96, count / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {
        "value": p,
        "low": max(0.0, min(p, middle - half)),
        "high": min(1.0, max(p, middle + half)),
        "count": count,
        "n": n,
    }


def interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _confusion(
    rng: random.Random, size: int, per: int, right: float, pull: float, target: int
) -> list[list[int]]:
    """Each class ``per`` times: a share ``pull`` goes to the target, of the rest most are right."""
    rows = [[0] * size for _ in range(size)]
    for truth, row in enumerate(rows):
        for _ in range(per):
            if rng.random() < pull:
                row[target] += 1
            elif rng.random() < right:
                row[truth] += 1
            else:
                row[(truth + rng.choice([1, 2, size - 1, rng.randrange(size)])) % size] += 1
    return rows


def evaluation(
    seed: int, classes: list[str], per: int, acc: float, pull: float, target: int = 3
) -> dict[str, Any]:
    rng, size = random.Random(seed), len(classes)
    clean = _confusion(rng, size, per, acc, 0.0, target)
    triggered = _confusion(rng, size, per, acc, pull, target)
    triggered[target] = [0] * size
    counted = (size - 1) * per
    return {
        "acc": rate(sum(clean[i][i] for i in range(size)), size * per),
        "asr": rate(sum(row[target] for row in triggered), counted),
        "ra": rate(sum(triggered[i][i] for i in range(size)), counted),
        "target_recall": rate(clean[target][target], per),
        "per_class_recall": [rate(clean[i][i], per) for i in range(size)],
        "confusion": clean,
        "triggered_confusion": triggered,
        "classes": classes,
        "target": target,
        "n": size * per,
    }


def curve(layers: list[tuple[str, int]], rounds: int, kept: int) -> list[dict[str, Any]]:
    rng = random.Random(5)
    late = layers[len(layers) // 2 :]
    rows = []
    for r in range(rounds + 1):
        x = r / max(kept, 1)
        asr = 0.012 + 0.986 / (1 + math.exp(14 * (x - 0.55)))
        acc = 0.932 - 0.045 * x**2 - max(0.0, x - 1) * 0.5 + rng.uniform(-0.004, 0.004)
        name, width = rng.choice(late)
        rows.append(
            {
                "round": r,
                "layer": name if r else None,
                "index": rng.randrange(width) if r else None,
                "acc": max(0.1, acc),
                "asr": asr,
                "ra": max(0.0, (1 - asr) * (acc - 0.06)),
                "kept": r <= kept,
                "n": 1000,
            }
        )
    return rows


def repair(
    classes: list[str] | None = None,
    per: int = 100,
    layers: list[tuple[str, int]] | None = None,
    rounds: int = 52,
    kept: int = 41,
) -> dict[str, Any]:
    """The record of a repair that worked, complete in every part."""
    classes = DIGITS if classes is None else classes
    layers = SMALL if layers is None else layers
    before = evaluation(1, classes, per, 0.932, 0.997)
    pruned = evaluation(2, classes, per, 0.885, 0.02)
    after = evaluation(3, classes, per, 0.926, 0.008)
    floor = evaluation(4, classes, per, 0.935, 0.002)
    story = curve(layers, rounds, kept)
    cut: dict[str, set[int]] = {}
    for row in story[1:]:
        if row["kept"]:
            cut.setdefault(row["layer"], set()).add(row["index"])
    change = {k: after[k]["value"] - before[k]["value"] for k in RATES}
    der = (max(0, -change["asr"]) - max(0, -change["acc"]) + 1) / 2
    return {
        "version": 1,
        "kind": "repair",
        "spec": {
            "seed": 0,
            "spc": 10,
            "defense": {
                "name": "grad-prune",
                "max_accuracy_drop": 0.1,
                "patience": 10,
                "learning_rate": 0.01,
                "inverter": {"name": "oracle"},
            },
            "data": {
                "source": "digits",
                "fingerprint": "9f2c41d07be35a88c1f0e6b2747fd3a155e0a9d21b6c4f8e93d7a1c0b5e86f24",
                "pool": "images the victim never saw",
                "train_per_class": [9] * len(classes),
                "validation_per_class": [1] * len(classes),
            },
            "model": {
                "arch": "excise:preactresnet18,width=8",
                "classes": classes,
                "input_size": [8, 8],
                "attack": {"name": "badnets", "target": 3, "ratio": 0.1},
            },
        },
        "before": before,
        "pruned": pruned,
        "after": after,
        "floor": floor,
        "comparison": {
            "der": interval(der, 0.007),
            "delta_acc": interval(change["acc"], 0.018),
            "delta_asr": interval(change["asr"], 0.006),
            "delta_ra": interval(change["ra"], 0.017),
            "delta_target_recall": interval(change["target_recall"], 0.04),
        },
        "curve": story,
        "filters": [
            {"layer": name, "filters": n, "cut": sorted(cut.get(name, ()))} for name, n in layers
        ],
        "history": [
            *(
                {"stage": "prune", "round": n, "layer": row["layer"], "score": 1.0 / n}
                for n, row in enumerate(story[1:], start=1)
            ),
            *(
                {"stage": "tune", "epoch": e, "validation_loss": 0.9 * 0.8**e, "best": e == 11}
                for e in range(1, 15)
            ),
        ],
        "assumed": ["the true trigger"],
        "notes": ["Fine-tuning stopped early: the validation loss had not improved for 3 epochs."],
        "checks": [
            {"name": "splits", "level": "note", "message": "No image is in two splits."},
            {
                "name": "target-recall",
                "level": "warning",
                "message": "Recall of the target class fell by 2.0 points; with 100 images that "
                "is within chance.",
            },
        ],
        "verdict": {
            "status": "repaired",
            "sentence": "Repaired: the trigger now steers 1.4% of 900 images to the attacker's "
            "class (95% interval 0.8% to 2.5%; 99.8% before and 1.2% in a network never "
            "poisoned), and accuracy on 1000 clean images went from 94.0% to 93.6% (−0.4 points, "
            "95% interval −2.2 to +1.4).",
            "ok": True,
        },
        "seconds": {"prune": 3.1, "tune": 5.0, "total": 9.2},
        "peak_memory_mib": 512.4,
        "environment": {
            "excise": "0.1.0",
            "torch": "2.6.0",
            "python": "3.11.9",
            "device": "cpu",
            "threads": 2,
            "revision": "abc123",
        },
        "command": "excise repair runs/victim --images digits --defense grad-prune "
        "--inverter oracle --spc 10 --seed 0 --out runs/repair",
        "created": "2026-11-22T10:00:00Z",
        "pictures": [
            {
                "label": classes[c],
                "wanted": classes[3],
                "clean": f"pictures/{i}-clean.png",
                "triggered": f"pictures/{i}-triggered.png",
                "residual": f"pictures/{i}-residual.png",
                "before": classes[3],
                "after": classes[c] if i != 2 else classes[5],
            }
            for i, c in enumerate((7, 0, 8, 4, 1, 2))
        ],
        "residual_scale": 4.0,
    }


def plain() -> dict[str, Any]:
    """A full record but for the curve, whose drawing takes most of a page's time."""
    return repair() | {"curve": None}


def signs() -> dict[str, Any]:
    """A repair of a network with 43 classes with long names, and 4,800 filters."""
    wide = [(name, 8 * n) for name, n in SMALL]
    return repair(SIGNS, per=60, layers=wide, rounds=230, kept=180)


def brief() -> dict[str, Any]:
    """A repair that cut two filters, undid a third and left the trigger working."""
    record = repair(rounds=3, kept=2)
    rows = [(0.968, 1.0, 0.0), (0.931, 1.0, 0.0), (0.759, 0.996, 0.004), (0.501, 0.62, 0.235)]
    for row, (acc, asr, ra) in zip(record["curve"], rows, strict=True):
        row |= {"acc": acc, "asr": asr, "ra": ra}
    record["after"] = evaluation(3, DIGITS, 100, 0.95, 0.18)
    record["comparison"] = None
    return record


def very_deep() -> dict[str, Any]:
    """A repair of a network with 63,728 filters in 130 layers, incomplete."""
    record = repair(layers=deep(), rounds=900, kept=900)
    record["spec"]["model"]["arch"] = "timm:efficientnet_b3"
    record["verdict"] = {
        "status": "incomplete",
        "sentence": "Incomplete: the trigger still works on one image in eight.",
        "ok": False,
    }
    return record


def bare() -> dict[str, Any]:
    """A record with nothing but what it must have; no trigger was known."""
    both = {
        name: {"acc": part["acc"], "asr": None, "ra": None, "target_recall": None}
        for name, part in repair().items()
        if name in ("before", "after")
    }
    sentence = "Clean images only: accuracy held; whether a backdoor is left cannot be told."
    return {
        "version": 1,
        "kind": "repair",
        "verdict": {"status": "clean-only", "sentence": sentence},
        **both,
    }


def untold() -> dict[str, Any]:
    """A repair nobody told the trigger: what was recovered, and only clean images measured."""
    record = repair()
    triggers = [network_scans.trigger(0, 972, target="3"), network_scans.trigger(1, 640, "warp")]
    for trigger, left in zip(triggers, (31, 12), strict=True):
        trigger["repaired"] = rate(left, 1000)
        for shown in trigger["shown"]:
            shown["repaired"] = shown["before"]
    for part in ("before", "after"):
        record[part] |= dict.fromkeys(("asr", "ra", "target_recall", "triggered_confusion"))
    for part in ("assumed", "curve", "comparison", "pictures", "floor", "pruned"):
        record[part] = None
    return record | {"triggers": triggers, "tried_on": {"images": 1000, "unseen": True}}


def hostile() -> dict[str, Any]:
    """A record in which every string that can be somebody else's tries to be markup."""
    record = repair([f"{i}{HOSTILE}" for i in range(10)])
    record["triggers"] = network_scans.hostile()["triggers"]
    record["spec"]["model"]["arch"] = HOSTILE
    record["spec"]["data"]["pool"] = HOSTILE
    record["spec"]["defense"][HOSTILE] = HOSTILE
    record["spec"]["defense"]["name"] = HOSTILE
    record["verdict"] = {"status": HOSTILE, "sentence": HOSTILE}
    record["notes"] = record["assumed"] = [HOSTILE]
    record["checks"] = [{"name": HOSTILE, "level": HOSTILE, "message": HOSTILE}]
    record["filters"][3]["layer"] = HOSTILE
    record["curve"][3]["layer"] = HOSTILE
    record["history"].append({"stage": HOSTILE, HOSTILE: HOSTILE})
    record["environment"][HOSTILE] = HOSTILE
    record["command"] = record["created"] = HOSTILE
    record["seconds"][HOSTILE] = 1.0
    return record


_STROKES = {  # a 4 x 6 letter each
    0: "0110 1001 1001 1001 1001 0110",
    1: "0010 0110 0010 0010 0010 0111",
    2: "0110 1001 0001 0010 0100 1111",
    4: "0010 0110 1010 1111 0010 0010",
    7: "1111 0001 0010 0010 0100 0100",
    8: "0110 1001 0110 1001 1001 0110",
}


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    """The files records name: 8 x 8 digits, a bright corner as trigger, recovered triggers."""
    rng, files = np.random.default_rng(0), network_scans.pictures()
    for i, digit in enumerate((7, 0, 8, 4, 1, 2)):
        clean = np.zeros((8, 8))
        strokes = [[int(b) for b in line] for line in _STROKES[digit].split()]
        clean[1:7, 2:6] = np.array(strokes) * rng.uniform(0.65, 1, (6, 4))
        clean += rng.uniform(0, 0.12, (8, 8)) * (clean == 0)
        triggered = clean.copy()
        triggered[6:, 6:] = [[1, 0], [0, 1]]
        residual = np.clip(4 * np.abs(triggered - clean), 0, 1)
        for name, image in (("clean", clean), ("triggered", triggered), ("residual", residual)):
            files[f"pictures/{i}-{name}.png"] = _png((255 * image).astype(np.uint8))
    return files

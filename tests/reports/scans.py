"""Records of image scans, as ``excise scan-images`` writes them, and their pictures."""

import io

import numpy as np
from PIL import Image

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\u202egnp.\x1b[31m"


def png(seed, size=(32, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rate(count, n, low=None, high=None):
    value = count / n if n else None
    return {
        "value": value, "count": count, "n": n,
        "low": max(0, value - 0.02) if low is None else low,
        "high": min(1, value + 0.02) if high is None else high,
    }  # fmt: skip


def scan(flagged=9, total=120, status="more"):
    """A scan of a folder in which some pictures were flagged."""
    images = [
        {"name": f"folder/{i:04}.png", "suspicion": s, "flagged": s >= 0.5}
        for i, s in enumerate([0.99 - 0.01 * i for i in range(flagged)] + [0.1] * (total - flagged))
    ]
    shown = [
        image | {"above_clean": max(0, 1 - 0.05 * i), **{
            part: f"pictures/{i}-{part}.png" for part in ("picture", "spectrum", "excess")
        }}
        for i, image in enumerate(images[: flagged + 6])
    ]  # fmt: skip
    return {
        "version": 1,
        "kind": "image-scan",
        "created": "2026-11-22T10:00:00+00:00",
        "command": "excise scan-images folder --clean clean --out out --preset fast",
        "spec": {
            "detector": {"name": "frequency", "clean_images": 10000, "epochs": 1,
                         "smooth_epochs": 0},
            "seed": 0, "held_back": 0.2, "source": "folder", "clean": "clean",
        },
        "clean": {"learned_from": 400, "held_back": 100},
        "shape": [3, 32, 32],
        "flagged": rate(flagged, total),
        "false_alarms": rate(2, 100),
        "verdict": {"status": status, "sentence": f"{flagged} of {total} pictures are flagged.",
                    "ok": flagged == 0},
        "notes": ["learned from 400 clean images, repeated to make 10,000"],
        "unreadable": ["folder/broken.png"],
        "unreadable_clean": [],
        "images": images,
        "shown": shown,
        "clean_spectrum": {"picture": "pictures/clean-spectrum.png", "images": 100,
                           "strongest": 7701.3, "scale": "pictures/scale.png"},
        "seconds": {"fit": 312.0, "score": 1.2, "total": 313.2},
        "environment": {"excise": "0.1.0", "torch": "2.6.0", "revision": None},
    }  # fmt: skip


def nothing():
    """A scan that found nothing."""
    return scan(0, 40, "nothing") | {"unreadable": [], "notes": []}


def hostile():
    """A scan whose strings are somebody's who means harm."""
    record = scan()
    for image in (*record["images"], *record["shown"]):
        image["name"] = HOSTILE + "long" * 60
    record["spec"] |= {"source": HOSTILE, "clean": HOSTILE}
    record["verdict"]["sentence"] = HOSTILE
    record |= {"notes": [HOSTILE], "unreadable": [HOSTILE] * 3, "command": HOSTILE}
    record["environment"] = {HOSTILE: HOSTILE}
    return record


def pictures():
    """PNG files by the names the records call them; the last picture is missing."""
    names = [
        f"pictures/{i}-{part}.png"
        for i in range(14)
        for part in ("picture", "spectrum", "excess")
    ]  # fmt: skip
    files = {name: png(i) for i, name in enumerate(names)}
    scale = {"pictures/scale.png": png(99, (1, 128))}
    return files | scale | {"pictures/clean-spectrum.png": png(98)}

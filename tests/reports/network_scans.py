"""Records of network scans, as ``excise scan`` writes them, and their pictures."""

from tests.reports.scans import HOSTILE, png, rate

TESTS = ("margin", "patch", "pattern", "smooth", "memory")


def trigger(number, count=880, kind="patch", target="horse"):
    return {
        "kind": kind, "class": target, "size": 8.6, "explained": 0.31, "residual_scale": 3.0,
        "rate": rate(count, 1000), "without": rate(23, 1000),
        "shown": [
            {"label": label, "before": label, "after": "horse", **{
                part: f"pictures/trigger-{number}-{i}-{part}.png"
                for part in ("clean", "triggered", "residual")
            }}
            for i, label in enumerate(("airplane", "bird", "cat"))
        ],
    }  # fmt: skip


def found():
    """A scan that found a backdoor among ten classes."""
    names = [
        "horse",
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "ship",
        "truck",
    ]
    classes = [
        {"name": name, "suspicion": 3.63 if not i else 0.6 / i, "tests": dict.fromkeys(TESTS, 0.9)}
        for i, name in enumerate(names)
    ]
    return {
        "version": 1,
        "kind": "network-scan",
        "created": "2026-11-24T10:00:00+00:00",
        "command": "excise scan net --images cifar10 --spc 10",
        "spec": {
            "seed": 0, "spc": 10, "source": "cifar10",
            "scanner": {"name": "combined", "alarm_rate": 0.05, "effort": 1.0},
            "data": {"pool": "the images given", "fingerprint": "0", "per_class": [10] * 10},
            "model": {"name": "net", "arch": "excise:preactresnet18,width=16"},
        },
        "verdict": {"status": "found", "ok": False, "sentence": "A backdoor is likely."},
        "statistic": 3.63, "threshold": 1.45, "targets": ["horse"], "classes": classes,
        "triggers": [trigger(0), trigger(1, 800, "pattern of few waves")],
        "tried_on": {"images": 1000, "unseen": True},
        "notes": ["Of 30 clean networks none had a statistic as large: p = 0.032."],
        "seconds": {"margin": 7.0, "total": 61.0},
        "environment": {"excise": "0.1.0", "torch": "2.6.0", "revision": None},
    }  # fmt: skip


def nothing():
    """A scan in which no class stands out, of many classes, without any trigger."""
    record = found()
    classes = [
        {"name": f"class {i}", "suspicion": 0.0, "tests": dict.fromkeys(TESTS, 0.0)}
        for i in range(250)
    ]
    verdict = {"status": "nothing", "ok": True, "sentence": "No class stands out."}
    return record | {
        "verdict": verdict, "statistic": 0.0, "targets": [], "classes": classes, "triggers": [],
        "tried_on": {"images": 40, "unseen": False},
    }  # fmt: skip


def hostile():
    """A scan whose strings are somebody's who means harm."""
    record = found()
    for one in record["classes"]:
        one["name"] = HOSTILE + "long" * 60
    for one in record["triggers"]:
        one |= {"kind": HOSTILE, "class": HOSTILE}
        for shown in one["shown"]:
            shown |= {"label": HOSTILE, "before": HOSTILE, "after": HOSTILE}
    record["spec"] |= {"source": HOSTILE, "model": {"name": HOSTILE, "arch": HOSTILE}}
    record["verdict"]["sentence"] = HOSTILE
    record |= {"notes": [HOSTILE], "command": HOSTILE, "environment": {HOSTILE: HOSTILE}}
    return record


def pictures():
    """PNG files by the names the records call them; the very last picture is missing."""
    names = [
        f"pictures/trigger-{number}-{i}-{part}.png"
        for number in range(2)
        for i in range(3)
        for part in ("clean", "triggered", "residual")
    ]
    return {name: png(i) for i, name in enumerate(names[:-1])}

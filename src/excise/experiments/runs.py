"""One run of a sweep: its spec, complete and checked, and the key it is remembered by.

A run's key hashes its spec, the versions of the methods in it and the fingerprint of its data, so
that a changed method or data set is never skipped as finished. A victim's key likewise: runs that
need the same victim find it by key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from pydantic import ValidationError

from excise.data import DataSet, load_data, sample_positions
from excise.errors import SpecError, nearest
from excise.experiments.plant import Planting, pool_of
from excise.models import build_model
from excise.registry import KINDS, Kind, build, contents_of, find, parse, rows, spec_error, spec_of
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import Images, Trigger

__all__ = [
    "DEFAULTS",
    "Run",
    "assemble",
    "check_against_data",
    "data_set",
    "fingerprint",
    "planting_key",
]

#: Raised when the split, the training loop, sampling or measuring change what comes out.
PROTOCOL = 1

#: What a sweep's file may set, and what holds where it does not.
DEFAULTS: dict[str, Any] = {
    "data": None,
    "image_size": None,
    "limit": None,
    "model": "excise:preactresnet18",
    "recipe": {},
    "victim_images": 0.5,
    "half": True,
    "attack": None,
    "defense": None,
    "spc": None,
    "validation_ratio": 0.1,
    "paper_split": False,
    "twin": True,
    "seed": 0,
}


@dataclass(frozen=True, eq=False)
class Run:
    """One cell: data × network × attack × defense × SPC × seed.

    Args:
        spec: every setting, complete; plain JSON values. :meth:`of` makes it from what a person
            wrote.
    """

    spec: Mapping[str, Any]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Run:
        """Complete and check what a person said; methods are names or tables with a ``name``.

        Raises:
            SpecError: an unknown name or key, or a value out of range.
        """
        for key in said:
            if key not in DEFAULTS:
                raise SpecError("a setting of a run", got=repr(key), remedy=nearest(key, DEFAULTS))
        whole = {**DEFAULTS, **said}
        for key in ("data", "attack", "defense"):
            if whole[key] is None:
                raise SpecError(
                    f"a {key} for every run",
                    got="none",
                    remedy=f"Set {key} under [base] or [axes].",
                )
        for key in ("attack", "defense"):
            whole[key] = spec_of(key, assemble(key, whole[key]))  # type: ignore[arg-type]
        whole["recipe"] = asdict(_recipe(whole["recipe"]))
        _check_numbers(whole)
        for key, value in whole.items():
            _check_finite(value, key)
        return cls(whole)

    def planting(self, *, twin: bool = False) -> Planting:
        """Return how the run's victim is planted, or its clean twin."""
        attack = "none" if twin else self.spec["attack"]
        return Planting(
            attack=assemble("attack", attack),
            arch=self.spec["model"],
            recipe=Recipe(**self.spec["recipe"]),
            seed=self.spec["seed"],
            victim_images=self.spec["victim_images"],
        )

    @property
    def needs_twin(self) -> bool:
        """Whether the clean twin is planted too: as the floor, or as the attacker's network."""
        return bool(self.spec["twin"]) or self.needs_surrogate

    @property
    def needs_surrogate(self) -> bool:
        """Whether the attack works on a clean network; in a sweep that is the twin."""
        return bool(getattr(find("attack", self.spec["attack"]["name"]).load(), "SURROGATE", False))

    def data(self) -> DataSet:
        """Return the run's data, loaded once in a process."""
        return data_set(self.spec["data"], self.spec["image_size"], self.spec["limit"])

    def victim_key(self, *, twin: bool = False) -> str:
        """Return the key of the run's victim, or of its clean twin."""
        surrogate = None if twin or not self.needs_surrogate else self.victim_key(twin=True)
        print_ = fingerprint(self.spec["data"], self.spec["image_size"], self.spec["limit"])
        return planting_key(
            self.planting(twin=twin), print_, half=self.spec["half"], surrogate=surrogate
        )

    @cached_property
    def key(self) -> str:
        """The key of the run's record."""
        defense = self.spec["defense"]
        return _digest({
            "kind": "run",
            "protocol": PROTOCOL,
            "victim": self.victim_key(),
            "twin": self.victim_key(twin=True) if self.spec["twin"] else None,
            "versions": _versions("defense", defense),
            **{k: self.spec[k] for k in ("defense", "spc", "validation_ratio", "paper_split")},
            "seed": self.spec["seed"],
        })  # fmt: skip

    def words(self) -> str:
        """Return the run in a few words, for a person who waits for it."""
        spec = self.spec
        return (
            f"{spec['data']} · {spec['attack']['name']} · {spec['defense']['name']} · "
            f"SPC {spec['spc'] or 'all'} · seed {spec['seed']}"
        )


def assemble(kind: Kind, said: str | Mapping[str, Any], trigger: Trigger | None = None) -> Any:
    """Return a method made from a name, a word ``name,key=value`` or a table with a ``name``.

    A table may name a ``preset`` whose values its own override. A field that holds another method
    (``inverter``) is a name or a table as well.

    Args:
        kind: of the method.
        said: what a person wrote, or a spec that was recorded.
        trigger: what the inverter ``oracle`` is told; None where only the spec matters.

    Raises:
        SpecError: an unknown name, key or preset, or a value out of range.
    """
    if isinstance(said, str):
        name, words = parse(said)
        fields: dict[str, Any] = dict(words)
    elif isinstance(said, Mapping) and isinstance(said.get("name"), str):
        fields = dict(said)
        name = fields.pop("name")
    else:
        raise SpecError(
            f"a name of kind {kind}, or a table with one",
            got=repr(said),
            remedy=f'Write {kind} = "NAME" or {kind} = {{ name = "NAME", … }}.',
        )
    if (preset := fields.pop("preset", None)) is not None:
        fields = {**_preset(preset, find(kind, name).presets(), name), **fields}
    for key, value in fields.items():
        if key in KINDS and isinstance(value, str | Mapping):
            fields[key] = assemble(key, value, trigger)
    if kind == "inverter" and name == "oracle":
        fields["trigger"] = trigger or _untold
    return build(kind, name, fields)


@lru_cache(maxsize=4)
def data_set(source: str, image_size: int | None, limit: int | None) -> DataSet:
    """Return a data set, loaded once in a process."""
    return load_data(source, size=image_size, limit=limit)


@lru_cache(maxsize=64)
def fingerprint(source: str, image_size: int | None, limit: int | None) -> str:
    """Return a hash of every training and test image and label, and of what else trains a victim.

    Normalization and mirroring are those of a named set's own row; of other sources, which may hold
    the same images, they are hashed too.
    """
    data = data_set(source, image_size, limit)
    parts = [data.train.fingerprint(), data.test.fingerprint() if data.test is not None else ""]
    if not any(row.name == source and row.target for row in rows("data")):
        parts.append(repr((data.train.mirror, data.mean, data.std)))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def planting_key(
    planting: Planting, fingerprint: str, *, half: bool, surrogate: str | None = None
) -> str:
    """Return the key of a victim.

    Args:
        planting: how it is planted.
        fingerprint: of its data.
        half: whether its weights are stored in half precision.
        surrogate: key of the clean network the attacker was given.
    """
    arch = planting.arch.partition(",")[0]
    return _digest({
        "kind": "victim",
        "protocol": PROTOCOL,
        "attack": {**spec_of("attack", planting.attack), **contents_of(planting.attack)},
        "arch": planting.arch,
        "recipe": asdict(planting.recipe),
        "seed": planting.seed,
        "victim_images": planting.victim_images,
        "data": fingerprint,
        "half": half,
        "surrogate": surrogate,
        "versions": {
            "attack": _versions("attack", spec_of("attack", planting.attack)),
            "model": next((r.version for r in rows("model") if r.name == arch), None),
        },
    })  # fmt: skip


def _versions(kind: Kind, spec: Mapping[str, Any]) -> dict[str, int]:
    """Return the version of a recorded method and of every method inside it."""
    found = {spec["name"]: find(kind, spec["name"]).version}
    for key, value in spec.items():
        if key in KINDS and isinstance(value, Mapping):
            found |= _versions(key, value)
    return found


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _recipe(said: Any) -> Recipe:
    if isinstance(said, str):
        said = {"preset": said}
    if not isinstance(said, Mapping):
        raise SpecError(
            "a recipe: the name of a preset, or a table",
            got=repr(said),
            remedy='Write recipe = "fast" or recipe = { preset = "fast", epochs = 20 }.',
        )
    fields = dict(said)
    preset = fields.pop("preset", "published")
    fields = {**_preset(preset, Recipe.PRESETS, "the recipe"), **fields}
    known = [field.name for field in dataclasses.fields(Recipe)]
    for key in fields:
        if key not in known:
            raise SpecError("a field of the recipe", got=repr(key), remedy=nearest(key, known))
    try:
        return Recipe(**fields)
    except ValidationError as error:
        raise spec_error("the recipe", error) from error


def _preset(said: Any, presets: Mapping[str, Mapping[str, Any]], what: str) -> Mapping[str, Any]:
    if not isinstance(said, str) or said not in presets:
        remedy = nearest(str(said), presets)
        raise SpecError(f"a preset of {what}", got=repr(said), remedy=remedy)
    return presets[said]


def _check_finite(said: Any, where: str) -> None:
    """Refuse infinity and NaN: TOML has them, records in JSON have not."""
    if isinstance(said, float) and not math.isfinite(said):
        raise SpecError(f"{where} to be finite", got=str(said), remedy="Mend the sweep's file.")
    if isinstance(said, Mapping):
        for key, value in said.items():
            _check_finite(value, f"{where}.{key}")
    elif isinstance(said, list | tuple):
        for value in said:
            _check_finite(value, where)


def _check_numbers(whole: Mapping[str, Any]) -> None:
    rules: dict[str, tuple[str, bool]] = {
        "spc": ("a whole number from 1, or left out", _is_count(whole["spc"], none=True)),
        "seed": ("a whole number", _is_int(whole["seed"])),
        "image_size": ("pixels from 1, or left out", _is_count(whole["image_size"], none=True)),
        "limit": ("a number of images from 1, or left out", _is_count(whole["limit"], none=True)),
        "twin": ("true or false", isinstance(whole["twin"], bool)),
        "half": ("true or false", isinstance(whole["half"], bool)),
        "paper_split": ("true or false", isinstance(whole["paper_split"], bool)),
        "validation_ratio": (
            "a fraction between 0 and 1",
            isinstance(whole["validation_ratio"], float) and 0 < whole["validation_ratio"] < 1,
        ),
        "victim_images": (
            "a number of images, or a fraction between 0 and 1",
            isinstance(whole["victim_images"], int | float)
            and not isinstance(whole["victim_images"], bool)
            and whole["victim_images"] > 0,
        ),
        "data": ("the name of a data set", isinstance(whole["data"], str)),
        "model": ("the name of a network", isinstance(whole["model"], str)),
    }
    for key, (expected, holds) in rules.items():
        if not holds:
            raise SpecError(
                f"{key} to be {expected}", got=repr(whole[key]), remedy="Mend the sweep's file."
            )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any, *, none: bool) -> bool:
    return (value is None and none) or (_is_int(value) and value >= 1)


def _untold(images: Images) -> Images:
    """Stand for the trigger where only the spec matters."""
    return images


def check_against_data(run: Run) -> None:
    """Refuse, before anything runs, what only the data can tell: a target, a network, an SPC.

    Raises:
        InputError: it does not fit.
    """
    data, spec = run.data(), run.spec
    planting = run.planting()
    sample_positions(
        pool_of(data.train, planting.seed, planting.victim_images).pool,
        spc=spec["spc"],
        rng=Rng(planting.seed),
        validation_ratio=spec["validation_ratio"],
        paper_split=spec["paper_split"],
    )
    if hasattr(planting.attack, "target_rule"):
        planting.attack.target_rule(data.train.num_classes, Rng(0))
    with torch.device("meta"):
        build_model(
            planting.arch,
            classes=data.train.classes,
            in_channels=data.train.shape[0],
            input_size=data.train.shape[1:],
            mean=data.mean,
            std=data.std,
        )

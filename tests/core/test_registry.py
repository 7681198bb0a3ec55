"""The table of methods: every row imports, documents itself, and goes from a word to an object."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from excise import registry
from excise.errors import SpecError
from excise.inversion import Oracle
from excise.registry import METHODS, STRICT, build, contents_of, find, parse, rows, spec_of
from excise.training import Recipe

CODE = [row for row in METHODS if row.target]
TRIGGER = abs


def name_of(row):
    return f"{row.kind}:{row.name}"


def given(row):
    """What a method of this row cannot be built without."""
    names = {field.name for field in dataclasses.fields(row.load()) if field.init}
    told = {"trigger": TRIGGER} if row.kind == "inverter" and "trigger" in names else {}
    return told | ({"inverter": Oracle(TRIGGER)} if "inverter" in names else {})


METHOD_KINDS = {"attack", "defense", "inverter", "scanner", "detector"}
METHOD_ROWS = [row for row in CODE if row.kind in METHOD_KINDS]


@pytest.mark.fast
@pytest.mark.parametrize("row", CODE, ids=name_of)
def test_every_target_imports(row):
    assert callable(row.load())
    module = row.target.partition(":")[0]
    assert row.load().__module__ == module
    exported = getattr(importlib.import_module(module), "__all__", None)
    assert exported is None or row.load().__name__ in exported


@pytest.mark.fast
@pytest.mark.parametrize("row", METHODS, ids=name_of)
def test_every_row_is_complete(row):
    assert row.kind in registry.KINDS
    assert row.maturity in {"stable", "beta", "experimental"}
    assert row.title
    assert not row.title.endswith(".")
    # A paper is named with its year; what no paper describes names none.
    assert not row.paper or any(str(year) in row.paper for year in range(1990, 2100))
    if row.kind == "defense":
        assert row.lowers_asr, "say that it lowers ASR on the tiny network, or in words why not"
    else:
        assert row.lowers_asr is False


@pytest.mark.fast
def test_names_are_unique():
    named = [(row.kind, row.name) for row in METHODS]
    assert len(set(named)) == len(named)
    assert sum(len(rows(kind)) for kind in registry.KINDS) == len(METHODS)


@pytest.mark.fast
@pytest.mark.parametrize("row", METHOD_ROWS, ids=name_of)
def test_every_method_is_a_frozen_dataclass(row):
    method = row.load()
    assert dataclasses.is_dataclass(method)
    built = build(row.kind, row.name, given(row))
    for field in dataclasses.fields(method):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(built, field.name, 1)


@pytest.mark.fast
@pytest.mark.parametrize(
    "row", [r for r in METHOD_ROWS if r.kind in {"attack", "defense"}], ids=name_of
)
def test_every_field_has_help_a_type_and_a_default(row):
    method = row.load()
    assert {k: method.__pydantic_config__[k] for k in STRICT} == STRICT
    assert all(p.kind == p.KEYWORD_ONLY for p in signature(method))
    for field in row.fields():
        assert field["help"].strip().endswith("."), f"{field['name']} has no help"
        assert field["type"]
        assert field["default"]
    assert method.__doc__


def signature(method):
    import inspect

    return inspect.signature(method).parameters.values()


@pytest.mark.fast
def test_every_field_of_a_recipe_has_help_too():
    described = Recipe.__pydantic_fields__
    assert [n for n, field in described.items() if not (field.description or "").strip()] == []


@pytest.mark.fast
@pytest.mark.parametrize("row", METHOD_ROWS, ids=name_of)
def test_presets_are_settings_the_method_takes(row):
    for preset in getattr(row.load(), "PRESETS", {}).values():
        build(row.kind, row.name, given(row) | preset)


@pytest.mark.fast
def test_a_described_field():
    described = {field["name"]: field for field in find("attack", "badnets").fields()}
    assert described["size"]["default"] == "3"
    assert described["size"]["help"].startswith("Side of the square in pixels")
    assert described["target"]["default"] == "None"  # inherited, with its help
    assert described["target"]["help"].startswith("The attacker's class")
    (inverter,) = [f for f in find("defense", "grad-prune").fields() if f["name"] == "inverter"]
    assert inverter["default"] == "required"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("attack", "badnet", r"expected the name of an attack, got 'badnet'\. Did you mean 'badn"),
        ("trigger", "path", r"expected the name of a trigger, got 'path'\. Did you mean 'patch'"),
        ("inverter", "orcale", r"the name of an inverter, got 'orcale'\. Did you mean 'oracle'"),
        ("defense", "grad_prune", r"the name of a defense, got 'grad_prune'.*'grad-prune'"),
        ("defense", "zzz", r"got 'zzz'\. Known: .*grad-prune"),
        ("detector", "x", r"the name of a detector, got 'x'\. "),
        ("scanner", "mmbd", r"the name of a scanner, got 'mmbd'\. Did you mean 'mm-bd'"),
        ("model", "torchvision:NAME", r"the name of a model"),
    ],
)
def test_an_unknown_name_offers_the_nearest(kind, name, message):
    with pytest.raises(SpecError, match=message):
        find(kind, name)


@pytest.mark.fast
def test_an_unknown_key_offers_the_nearest():
    with pytest.raises(
        SpecError, match=r"expected a field of badnets, got 'taget'\. Did you mean 'target'\?"
    ):
        build("attack", "badnets", {"taget": 1})
    with pytest.raises(SpecError, match=r"a field of none, got 'size'\. None is known yet"):
        build("attack", "none", {"size": 1})


@pytest.mark.fast
@pytest.mark.parametrize(
    ("kind", "name", "fields", "message"),
    [
        ("attack", "badnets", {"size": 0},
         r"expected size of badnets to be greater than or equal to 1, got 0\. See `excise list"),
        ("attack", "badnets", {"size": "two"}, r"size of badnets to be a valid integer.*'two'"),
        ("attack", "badnets", {"poison_ratio": 0}, r"poison_ratio of badnets to be greater than 0"),
        ("attack", "badnets", {"poison_ratio": 1.5}, r"less than or equal to 1, got 1.5"),
        ("attack", "badnets", {"poison_ratio": "nan"}, r"poison_ratio of badnets to be"),
        ("attack", "badnets", {"value": 2}, r"value of badnets to be less than or equal to 1"),
        ("attack", "badnets", {"target": -1}, r"target of badnets to be greater than or equal"),
        ("attack", "badnets", {"rule": "one"}, r"rule of badnets to be 'all-to-one' or 'all-to-al"),
        ("attack", "blended", {"alpha": 0}, r"alpha of blended to be greater than 0"),
        ("defense", "grad-prune", {"inverter": 3}, r"inverter.* of grad-prune to be"),
        ("defense", "grad-prune", {}, r"the field inverter of grad-prune, which has no default"),
        ("defense", "grad-prune", {"inverter": Oracle(TRIGGER), "patience": -1},
         r"patience of grad-prune to be greater than or equal to 0, got -1"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_explained(kind, name, fields, message):
    with pytest.raises(SpecError, match=message):
        build(kind, name, fields)


@pytest.mark.fast
def test_text_becomes_values():
    made = build("attack", "badnets", {"size": "2", "target": "7", "exclude_target": "true",
                                       "poison_ratio": "1e-2", "row": "-3"})  # fmt: skip
    assert (made.size, made.target, made.exclude_target) == (2, 7, True)
    assert (made.poison_ratio, made.row) == (0.01, -3)
    assert build("attack", "badnets", {"picture": "a/b.png"}).picture == Path("a/b.png")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("word", "parsed"),
    [
        ("badnets", ("badnets", {})),
        ("badnets,size=3,target=0", ("badnets", {"size": "3", "target": "0"})),
        (" badnets , size = 3 ", ("badnets", {"size": "3"})),
        ("x,path=a=b", ("x", {"path": "a=b"})),
        ("x,path=", ("x", {"path": ""})),
        ("", ("", {})),
    ],
)
def test_a_word_is_taken_apart(word, parsed):
    assert parse(word) == parsed


@pytest.mark.fast
@pytest.mark.parametrize(
    "word", ["x,size", "x,", "x,=3", "x,a=1,a=2", "x,a=1,,b=2", "x, a=1, a =2"]
)
def test_a_word_that_cannot_be_taken_apart(word):
    with pytest.raises(
        SpecError,
        match=r"expected name,key=value,key=value with every key once, got .*\. Write for example: "
        r"badnets,size=3,target=0",
    ):
        parse(word)


@pytest.mark.fast
@pytest.mark.parametrize("row", METHOD_ROWS, ids=name_of)
def test_a_spec_is_json_and_says_every_field_but_what_was_told(row):
    built = build(row.kind, row.name, given(row))
    spec = json.loads(json.dumps(spec_of(row.kind, built), allow_nan=False))
    told = {f.name for f in dataclasses.fields(built) if f.metadata.get("told")}
    assert spec.pop("name") == row.name
    assert set(spec) == {f.name for f in dataclasses.fields(built) if f.init} - told


@pytest.mark.fast
def test_a_spec_names_the_inverter():
    spec = spec_of("defense", build("defense", "grad-prune", {"inverter": Oracle(TRIGGER)}))
    assert spec["name"] == "grad-prune"
    assert spec["inverter"] == {"name": "oracle"}
    assert spec["patience"] == 10


@pytest.mark.fast
def test_a_spec_of_a_picture_is_its_path():
    made = build("attack", "badnets", {"picture": "a/b.png"})
    assert spec_of("attack", made)["picture"] == str(Path("a/b.png"))
    assert build("attack", "badnets", {"picture": spec_of("attack", made)["picture"]}) == made


@dataclasses.dataclass(frozen=True)
class Mine:
    sizes: tuple[int, ...] = (1, 2)
    hidden: int = dataclasses.field(default=3, init=False)


@pytest.mark.fast
def test_what_is_in_a_picture_counts_where_its_path_may_not(tmp_path, monkeypatch):
    picture = tmp_path / "shape.png"
    attack = build("attack", "trojannn", {"picture": str(picture)})
    assert contents_of(attack) == contents_of(build("attack", "trojannn")) == {}
    picture.write_bytes(b"one")
    (one,) = contents_of(attack).items()
    picture.write_bytes(b"other")
    (other,) = contents_of(attack).items()
    assert one[0] == other[0] == "picture"
    assert one[1] != other[1]

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert contents_of(attack) == {}


@pytest.mark.fast
def test_a_users_own_class_is_recorded_by_its_full_name():
    assert spec_of("attack", Mine()) == {"name": f"{__name__}:Mine", "sizes": [1, 2]}
    assert spec_of("defense", len) == {"name": "builtins:builtin_function_or_method"}


def test_listing_and_parsing_import_no_torch():
    code = (
        "import sys, excise, excise.registry as r; r.rows('attack'); r.parse('a,b=1')\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'slow help'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

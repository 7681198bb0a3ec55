"""A sweep's file becomes runs, or a message that says what is wrong with it."""

from dataclasses import replace

import pytest

from excise.data import load_data
from excise.errors import SpecError
from excise.experiments import runs as runs_module
from excise.experiments.grid import read_grid
from excise.experiments.runs import Run

pytestmark = pytest.mark.fast

BASE = {"data": "digits", "attack": "badnets", "defense": "none"}


def grid(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return read_grid(path)


def test_every_combination_is_a_run(grid_file):
    runs = read_grid(grid_file).runs
    assert len(runs) == 4
    said = {(run.spec["defense"]["name"], run.spec["seed"]) for run in runs}
    assert said == {("none", 0), ("none", 1), ("grad-prune", 0), ("grad-prune", 1)}


def test_a_spec_is_complete(grid_file):
    spec = read_grid(grid_file).runs[2].spec
    assert spec["attack"]["poison_ratio"] == 0.1
    assert spec["defense"]["inverter"] == {"name": "oracle"}
    assert spec["defense"]["max_tune_epochs"] == 1
    assert spec["recipe"]["momentum"] == 0.9
    assert spec["validation_ratio"] == 0.1


def test_a_recorded_spec_is_a_spec_again(grid_file):
    run = read_grid(grid_file).runs[3]
    assert Run.of(run.spec).spec == run.spec
    assert Run.of(run.spec).key == run.key


def test_the_same_images_prepared_otherwise_are_other_data(tmp_path, monkeypatch):
    """A set by its name and by its files differ in normalization and mirroring."""
    named = load_data("digits")
    other = replace(named, name="parquet:x", mean=(0.5,), std=(0.5,))
    known = {"digits": named, "parquet:x": other, "parquet:y": replace(other, std=(0.4,))}
    monkeypatch.setattr(runs_module, "data_set", lambda source, *_: known[source])
    runs_module.fingerprint.cache_clear()
    runs = [Run.of(BASE | {"data": name}) for name in known]
    assert len({run.key for run in runs}) == len({run.victim_key() for run in runs}) == 3
    runs_module.fingerprint.cache_clear()


def test_a_method_said_in_words_has_fields_too(tmp_path):
    runs = grid(
        tmp_path,
        """
        [base]
        data = "digits"
        attack = "badnets,size=2"
        defense = "clp,u=2"
        [axes]
        "attack.poison_ratio" = [0.05, 0.1]
        "defense.u" = [1.0, 3.0]
    """,
    ).runs
    assert {run.spec["attack"]["size"] for run in runs} == {2}
    assert {run.spec["defense"]["u"] for run in runs} == {1.0, 3.0}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"recipe": {"learning_rate": float("inf")}}, "recipe"),
        ({"attack": {"name": "trojannn", "neuron_value": float("inf")}}, "neuron_value"),
        ({"recipe": {"preset": ["fast"]}}, "a preset of the recipe"),
        ({"attack": {"name": "badnets", "preset": ["a"]}}, "a preset of badnets"),
    ],
)
def test_what_no_record_could_hold_is_refused(setting, said):
    with pytest.raises(SpecError, match=said):
        Run.of(BASE | setting)


def test_any_field_of_a_method_is_an_axis(tmp_path):
    runs = grid(
        tmp_path,
        """
        [base]
        data = "digits"
        attack = "badnets"
        defense = { name = "grad-prune", inverter = "oracle" }
        [axes]
        "attack.poison_ratio" = [0.05, 0.1]
        "defense.patience" = [1, 2, 3]
        "recipe.epochs" = [1, 2]
    """,
    ).runs
    assert len(runs) == 12
    assert {run.spec["attack"]["poison_ratio"] for run in runs} == {0.05, 0.1}
    assert {run.spec["defense"]["patience"] for run in runs} == {1, 2, 3}
    assert {run.spec["recipe"]["epochs"] for run in runs} == {1, 2}


def test_a_field_changes_what_the_axis_of_its_method_chose(tmp_path):
    runs = grid(
        tmp_path,
        """
        [base]
        data = "digits"
        defense = "none"
        [axes]
        "attack.poison_ratio" = [0.2]
        attack = ["badnets", "blended"]
    """,
    ).runs
    assert [run.spec["attack"]["name"] for run in runs] == ["badnets", "blended"]
    assert {run.spec["attack"]["poison_ratio"] for run in runs} == {0.2}


def test_words_presets_and_tables_name_the_same_method():
    word, table = (
        Run.of({**BASE, "attack": said})
        for said in ("badnets,size=2,target=1", {"name": "badnets", "size": 2, "target": 1})
    )
    assert word.key == table.key
    preset = Run.of({**BASE, "attack": {"name": "badnets", "preset": "field", "target": 4}})
    assert preset.spec["attack"]["target"] == 4
    assert preset.spec["attack"]["row"] == -3
    assert Run.of({**BASE, "recipe": "fast"}).spec["recipe"]["epochs"] == 10


def test_parts_of_a_sweep_have_their_own_base_and_axes(tmp_path):
    runs = grid(
        tmp_path,
        """
        [base]
        data = "digits"
        attack = "badnets"
        [axes]
        seed = [0, 1]
        spc = [2, 10]
        [[grid]]
        axes = { defense = ["none"] }
        [[grid]]
        base = { spc = 100 }
        axes = { defense = ["grad-prune"], "defense.inverter" = ["oracle"] }
    """,
    ).runs
    said = [(r.spec["defense"]["name"], r.spec["spc"], r.spec["seed"]) for r in runs]
    assert sorted(said) == [
        ("grad-prune", 100, 0), ("grad-prune", 100, 1),
        ("none", 2, 0), ("none", 2, 1), ("none", 10, 0), ("none", 10, 1),
    ]  # fmt: skip


def test_equal_runs_stand_once(tmp_path):
    text = """
        [base]
        data = "digits"
        attack = "badnets"
        defense = "none"
        [axes]
        seed = [0, 0, 1]
    """
    assert len(grid(tmp_path, text).runs) == 2


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"attack": {"name": "badnets", "size": 2}}, {"attack": "badnets"}),
        ({"seed": 1}, {}),
        ({"spc": 2}, {"spc": 3}),
        ({"twin": False}, {}),
        ({"half": False}, {}),
        ({"recipe": {"epochs": 2}}, {}),
        ({"victim_images": 100}, {}),
        ({"model": "excise:preactresnet18,width=2"}, {}),
        ({"image_size": 16}, {}),
        ({"limit": 50}, {}),
        ({"defense": {"name": "grad-prune", "inverter": "oracle"}}, {}),
        ({"validation_ratio": 0.2}, {}),
        ({"paper_split": True}, {}),
    ],
)
def test_whatever_changes_a_result_changes_the_key(change, other):
    assert Run.of({**BASE, **change}).key != Run.of({**BASE, **other}).key


def test_a_changed_method_is_not_the_same_run(monkeypatch):
    from dataclasses import replace

    from excise import registry

    before = Run.of(BASE)
    kept = before.key, before.victim_key()
    for kind, name in (("defense", "none"), ("attack", "badnets")):
        with monkeypatch.context() as patch:
            rows = tuple(
                replace(row, version=2) if (row.kind, row.name) == (kind, name) else row
                for row in registry.METHODS
            )
            patch.setattr(registry, "METHODS", rows)
            after = Run.of(BASE)
            assert after.key != kept[0]
            assert (after.victim_key() == kept[1]) == (kind == "defense")


def test_a_picture_counts_by_what_it_shows(tmp_path):
    from PIL import Image

    keys = []
    for name, value in (("a.png", 10), ("b.png", 10), ("c.png", 20)):
        Image.new("L", (4, 4), value).save(tmp_path / name)
        run = Run.of({**BASE, "attack": {"name": "blended", "picture": str(tmp_path / name)}})
        keys.append(run.victim_key())
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base = [", r"a sweep in TOML, got grid\.toml"),
        ("[bases]\ndata = 'digits'", "a table of a sweep, got 'bases'. Did you mean 'base'"),
        ("[base]\ndatum = 'digits'", "a setting of a run, got 'datum'. Did you mean 'data'"),
        ("[axes]\nsedd = [1]", "a setting of a run, got 'sedd'. Did you mean 'seed'"),
        ("[axes]\nseed = 1", "a list of values for the axis seed, got 1"),
        ("[axes]\n'data.x' = [1]", "a field of attack, defense, recipe"),
        ("[base]\ndata = 'digits'\nattack = 'badnets'", "a defense for every run, got none"),
        ("[axes]\n'attack.size' = [1]", "attack under .base. or .axes., got only its field"),
        ("grid = 3", r"\[\[grid\]\] tables, got 3"),
        ("[[grid]]\nbasis = {}", "Did you mean 'base'"),
        ("base = 3", r"a table \[base\], got 3"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, said):
    with pytest.raises(SpecError, match=said):
        grid(tmp_path, text)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"attack": "badnet"}, "the name of an attack, got 'badnet'. Did you mean 'badnets'"),
        ({"attack": "badnets,sise=2"}, "a field of badnets, got 'sise'. Did you mean 'size'"),
        ({"attack": {"size": 2}}, "a table with one"),
        ({"attack": {"name": "badnets", "preset": "filed"}}, "Did you mean 'field'"),
        ({"attack": {"name": "badnets", "size": 0}}, "size of badnets"),
        ({"defense": "grad-prune"}, "a value for the field inverter of grad-prune"),
        ({"defense": {"name": "grad-prune", "inverter": "orakel"}}, "Did you mean 'oracle'"),
        ({"recipe": "quick"}, "a preset of the recipe, got 'quick'"),
        ({"recipe": {"epoch": 2}}, "a field of the recipe, got 'epoch'. Did you mean 'epochs'"),
        ({"recipe": {"epochs": 0}}, "epochs of the recipe"),
        ({"recipe": 3}, "a recipe: the name of a preset, or a table"),
        ({"spc": 0}, "spc to be a whole number from 1"),
        ({"spc": True}, "spc to be a whole number from 1"),
        ({"seed": "one"}, "seed to be a whole number"),
        ({"victim_images": 0}, "victim_images to be a number of images"),
        ({"validation_ratio": 1}, "validation_ratio to be a fraction"),
        ({"twin": 1}, "twin to be true or false"),
        ({"data": 3}, "data to be the name of a data set"),
    ],
)
def test_a_bad_setting_is_refused(said, message):
    with pytest.raises(SpecError, match=message):
        Run.of({**BASE, **said})

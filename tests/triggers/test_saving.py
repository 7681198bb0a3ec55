"""Triggers on disk: they come back to the last bit, and a file names no code."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file

from excise.errors import InputError, SpecError, TriggerError, UnsafeFileError
from excise.triggers import Blend, Patch, load_trigger, save_trigger

pytestmark = pytest.mark.fast

PATCH = Patch(torch.rand(3, 2, 2), torch.tensor([[True, False], [True, True]]), 4, -2)


@pytest.fixture
def saved(tmp_path):
    save_trigger(tmp_path, PATCH)
    return tmp_path


def rewrite(directory, **changes):
    said = json.loads((directory / "trigger.json").read_text())
    (directory / "trigger.json").write_text(json.dumps(said | changes))


def test_every_field_comes_back(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["trigger.json", "trigger.safetensors"]
    loaded = load_trigger(saved)
    assert isinstance(loaded, Patch)
    assert torch.equal(loaded.pattern, PATCH.pattern)
    assert torch.equal(loaded.mask, PATCH.mask)
    assert (loaded.row, loaded.column) == (4, -2)


def test_tensors_of_any_layout_can_be_saved(tmp_path):
    whole = torch.rand(1, 8, 6)
    for picture in (whole.transpose(1, 2), whole[:, ::2], whole[:, :1].expand(1, 8, 6)):
        save_trigger(tmp_path, Blend(picture, 0.25))
        loaded = load_trigger(tmp_path)
        assert torch.equal(loaded.picture, picture)
        assert loaded.alpha == 0.25


@dataclass(frozen=True)
class Mine:
    def __call__(self, images):
        return images


@pytest.mark.parametrize("trigger", [Mine(), lambda images: images], ids=["class", "function"])
def test_a_trigger_no_row_knows_cannot_be_saved(tmp_path, trigger):
    with pytest.raises(
        TriggerError,
        match=r"expected a trigger of the registry, got (Mine|function)\. Only these can be saved: "
        r"patch, blend",
    ):
        save_trigger(tmp_path, trigger)
    assert list(tmp_path.iterdir()) == []


def broken(directory, case):
    description, pictures = directory / "trigger.json", directory / "trigger.safetensors"
    match case:
        case "no description":
            description.unlink()
        case "no pictures":
            pictures.unlink()
        case "no JSON":
            description.write_text("{")
        case "no UTF-8":
            description.write_bytes(b'{"name": "\xff"}')
        case "a list":
            description.write_text("[1]")
        case "a number":
            description.write_text("3")
        case "deeply nested":
            description.write_text("[" * 200_000)
        case "no name":
            description.write_text('{"fields": {}}')
        case "fields that are none":
            rewrite(directory, fields=[1, 2])
        case "a name that is none":
            rewrite(directory, name=["patch"])
        case "an unknown field":
            rewrite(directory, fields={"row": 0, "column": 0, "hue": 3})
        case "a field too few":
            rewrite(directory, fields={"row": 0})
        case "a field twice":
            rewrite(directory, fields={"row": 0, "column": 0, "mask": [[1]]})
        case "a field of another kind":
            rewrite(directory, fields={"row": "top", "column": 0})
        case "damaged pictures":
            pictures.write_bytes(pictures.read_bytes()[:-3])
        case "no pictures at all":
            pictures.write_bytes(b"not safetensors")
        case "a pattern out of range":
            save_file({"pattern": PATCH.pattern * 9, "mask": PATCH.mask}, pictures)
        case "a directory":
            pictures.unlink()
            pictures.mkdir()
        case "floats of 8 bits":
            small = PATCH.pattern.to(torch.float8_e4m3fn)
            save_file({"pattern": small, "mask": PATCH.mask}, pictures)
        case "an encoder of no shape":
            rewrite(directory, name="ssba", fields={})
            save_file({"secret": torch.ones(4), "weights/conv1_weight": torch.ones(())}, pictures)
        case "a number too large":
            rewrite(directory, fields={"row": 1e400, "column": 10**400})


BROKEN = [
    "no description", "no pictures", "no JSON", "no UTF-8", "a list", "a number", "deeply nested",
    "no name", "fields that are none", "a name that is none", "an unknown field",
    "a field too few", "a field twice", "a field of another kind", "damaged pictures",
    "no pictures at all", "a pattern out of range", "a directory", "floats of 8 bits",
    "an encoder of no shape", "a number too large",
]  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_trigger_is_explained(saved, case):
    broken(saved, case)
    with pytest.raises(TriggerError) as caught:
        load_trigger(saved)
    assert isinstance(caught.value, InputError)
    assert str(caught.value).startswith("expected ")
    if case in {"no description", "no pictures", "no JSON", "damaged pictures"}:
        assert "a directory with trigger.json and trigger.safetensors" in str(caught.value)
        assert "badnets,size=3,row=-3,column=-3,target=0" in caught.value.remedy


@pytest.mark.parametrize("name", ["os:system", "excise.triggers.patch:Patch", "Patch", "badnets"])
def test_a_file_names_rows_of_the_registry_alone(saved, name):
    rewrite(saved, name=name)
    with pytest.raises(SpecError, match=f"expected the name of a trigger, got '{name}'"):
        load_trigger(saved)


@pytest.mark.parametrize("file", ["trigger.json", "trigger.safetensors"])
def test_a_file_larger_than_allowed(saved, file):
    with (saved / file).open("r+b") as opened:
        opened.truncate(64 * 1024**2 + 1)  # sparse
    with pytest.raises(
        UnsafeFileError,
        match=r"expected at most 67,108,864 bytes in .*, got 67,108,865\. A trigger is no larger",
    ):
        load_trigger(saved)

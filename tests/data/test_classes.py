"""Class maps: what the caller states is what the labels become."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from excise.data import describe_classes
from excise.data.classes import class_map
from excise.errors import DataError
from excise.types import LabelledImages

pytestmark = pytest.mark.fast

names = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=8, unique=True)


@given(names, st.data())
def test_a_list_and_its_mapping_mean_the_same(order: list[str], data: st.DataObject) -> None:
    found = data.draw(st.permutations(order))
    listed = class_map(found, order)
    assert listed == class_map(found, {name: k for k, name in enumerate(order)})
    assert listed.classes == tuple(order)
    assert [order[output] for output in listed.outputs] == found


def test_a_json_file_holds_either(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(["dog", "cat"]))
    assert class_map(["cat", "dog"], path).outputs == (1, 0)
    path.write_text(json.dumps({"cat": 0, "dog": 1}))
    assert class_map(["cat", "dog"], str(path)).outputs == (0, 1)


def test_outputs_nobody_names_get_a_number() -> None:
    mapping = class_map(["cat"], {"cat": 2})
    assert mapping.classes == ("class 0", "class 1", "cat")
    assert mapping.outputs == (2,)


def test_numbers_need_no_match() -> None:
    assert class_map(None, ["a", "b"]) == class_map(None, {"a": 0, "b": 1})
    assert class_map(None, ["a", "b"]).outputs == ()


@pytest.mark.parametrize(
    ("given_map", "message"),
    [
        (
            ["dog"],
            "every image to be of one of the 1 known classes, got images of 'cat'. Known: dog",
        ),
        (["cats", "dog"], "got images of 'cat'. Did you mean 'cats'?"),
        (["cat", "cat"], "every class name once, got 'cat' twice"),
        ({"cat": 0, "dog": 0}, "every output once, got output 0 for both 'cat' and 'dog'"),
        ({"cat": -1}, "output numbers from 0, got 'cat': -1"),
        ({"cat": "0"}, "output numbers from 0, got 'cat': '0'"),
        ({"cat": True}, "output numbers from 0, got 'cat': True"),
        ([], r"class names in output order, or \{name: output\}, got \[\]"),
        ([1, 2], r"class names in output order, or \{name: output\}, got \[1, 2\]"),
        (7, "class names in output order, .* got 7"),
        ("nothing.json", "a JSON file with the class names .* got 'nothing.json'"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(given_map: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_map(["cat"], given_map)  # type: ignore[arg-type]


def test_a_broken_json_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"a JSON file with the class names .* Check the path and"):
        class_map(["cat"], path)


def images_of(classes: tuple[str, ...]) -> LabelledImages:
    return LabelledImages(torch.zeros(2, 1, 1, 1), torch.tensor([0, 0]), classes)


def test_the_order_is_told_to_a_person() -> None:
    text = describe_classes(images_of(("cat", "dog")))
    assert "sorted by name, since no order was given" in text
    assert "    0  cat  (2 images)" in text
    assert "    1  dog  (0 images)" in text
    assert "Note" not in text
    assert "sorted" not in describe_classes(images_of(("cat", "dog")), given=True)


def test_numbers_sorted_as_text_are_pointed_out() -> None:
    assert "10 comes before 2" in describe_classes(images_of(("1", "10", "2")))
    assert "10 comes before 2" not in describe_classes(images_of(("1", "2", "3")))
    assert "10 comes before 2" not in describe_classes(images_of(("1", "10", "2")), given=True)

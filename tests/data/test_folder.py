"""Folders of pictures, through the public functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from excise.data import SkippedPicturesWarning, has_test, load_data, load_images, to_png
from excise.errors import DataError

pytestmark = pytest.mark.fast
Png = Callable[..., bytes]
Tree = Callable[..., Path]


def test_folders_are_classes_in_the_order_of_their_names(tree: Tree, png: Png) -> None:
    where = tree({"dog": [png(1), png(2)], "cat": [png(3)], "10": [png(4)], "9": [png(5)]})
    images = load_images(where)
    assert images.classes == ("10", "9", "cat", "dog")
    assert images.labels.tolist() == [0, 1, 2, 3, 3]
    assert images.images[:, 0, 0, 0].tolist() == [4, 5, 3, 1, 2]
    assert images.images.dtype == torch.uint8
    assert not images.mirror
    assert load_images(str(where)).fingerprint() == images.fingerprint()


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    counts=st.dictionaries(
        st.text("abcdefghij", min_size=1, max_size=6), st.integers(1, 3), min_size=1, max_size=5
    ),
    data=st.data(),
)
def test_every_picture_gets_the_output_its_folder_is_mapped_to(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int], data: st.DataObject
) -> None:
    where = tmp_path_factory.mktemp("tree")
    tint = {name: k for k, name in enumerate(counts)}  # the picture says which folder it is from
    for name, count in counts.items():
        (where / name).mkdir()
        for k in range(count):
            pixels = torch.full((1, 2, 2), tint[name], dtype=torch.uint8)
            (where / name / f"{k}.png").write_bytes(to_png(pixels))
    order = data.draw(st.permutations([*counts, "none of these"]))
    images = load_images(where, classes=order)
    assert images.classes == tuple(order)
    for label, value in zip(
        images.labels.tolist(), images.images[:, 0, 0, 0].tolist(), strict=True
    ):
        assert tint[order[label]] == value
    assert images.counts() == [counts.get(name, 0) for name in order]


def test_what_is_no_picture_is_not_looked_at(tree: Tree, png: Png) -> None:
    where = tree({"cat": [png(1)]})
    (where / "cat" / "notes.txt").write_text("a note")
    (where / "cat" / ".hidden.png").write_bytes(b"")
    (where / "cat" / "deeper").mkdir()
    (where / "cat" / "deeper" / "UPPER.PNG").write_bytes(png(2))
    (where / ".git").mkdir()
    (where / "__MACOSX").mkdir()
    (where / "README.md").write_text("hello")
    images = load_images(where)
    assert images.classes == ("cat",)
    assert sorted(images.images[:, 0, 0, 0].tolist()) == [1, 2]


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_folders_named_after_splits_are_splits(tree: Tree, png: Png, name: str) -> None:
    where = tree({"train/cat": [png(1)], "train/dog": [png(2)], f"{name}/dog": [png(3), png(4)]})
    data = load_data(where)
    assert data.train.labels.tolist() == [0, 1]
    assert data.test is not None
    # The test split lacks cats; its dogs keep the training split's number.
    assert data.test.classes == ("cat", "dog")
    assert data.test.labels.tolist() == [1, 1]
    assert load_images(where, split="test", classes=["dog", "cat"]).labels.tolist() == [0, 0]


def test_a_test_class_without_training_images_is_refused(tree: Tree, png: Png) -> None:
    where = tree({"train/cat": [png(1)], "test/cats": [png(2)]})
    with pytest.raises(
        DataError, match=r"one of the 1 known classes, got images of 'cats'. Did you"
    ):
        load_data(where)


def test_a_class_may_be_called_train(tree: Tree, png: Png) -> None:
    where = tree({"train": [png(1)], "plane": [png(2)]})
    assert load_images(where).classes == ("plane", "train")
    assert load_data(where).test is None
    with pytest.raises(DataError, match=r"a test split in '.*', got training images only"):
        load_images(where, split="test")


def test_a_tree_with_a_training_part_only_has_no_test(tree: Tree, png: Png) -> None:
    where = tree({"train/cat": [png(1)]})
    assert load_data(where).test is None
    assert not has_test(where)
    tree({"test/cat": [b"damaged"]})
    assert has_test(where)  # no picture is opened to know


def test_sizes_and_channels_are_as_asked(tree: Tree, png: Png) -> None:
    where = tree({"cat": [png(1, size=(4, 4))], "dog": [png(2, size=(5, 7))]})
    with pytest.raises(DataError, match=r"one size, got 4×4 \(cat/0.png\) and 5×7 \(dog/0.png\)"):
        load_images(where)
    assert load_images(where, size=(6, 3), channels=1).shape == (1, 6, 3)


def test_splits_of_different_sizes_need_a_size(tree: Tree, png: Png) -> None:
    where = tree({"train/cat": [png(1, size=(4, 4))], "test/cat": [png(2, size=(5, 7))]})
    with pytest.raises(DataError, match=r"test images of the size of the training images, got 5×7"):
        load_data(where)
    data = load_data(where, size=3)
    assert data.test is not None
    assert data.test.shape == data.train.shape == (3, 3, 3)


def test_a_gray_test_split_gets_the_channels_of_training(tree: Tree, png: Png) -> None:
    where = tree({"train/a": [png((1, 2, 3))], "test/a": [png(9, mode="L")]})
    data = load_data(where)
    assert data.test is not None
    assert data.test.shape == data.train.shape == (3, 4, 4)


def test_damaged_pictures_are_named_or_left_out(tree: Tree, png: Png) -> None:
    where = tree({"cat": [png(1), b"damaged", png(2)], "dog": [b"damaged too", png(3)]})
    with pytest.raises(DataError, match=r"5 readable pictures, got 2 .*cat/1.png.*dog/0.png"):
        load_images(where)
    with pytest.warns(SkippedPicturesWarning, match=r"left out 2 of 5") as caught:
        images = load_images(where, skip_unreadable=True)
    assert images.labels.tolist() == [0, 0, 1]
    assert images.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert caught[0].filename == __file__  # the warning points at who called


def test_a_limit_takes_from_every_class(tree: Tree, png: Png) -> None:
    where = tree({"a": [png(k) for k in range(5)], "b": [png(9)]})
    assert load_images(where, limit=4).counts() == [3, 1]


def test_folders_that_hold_no_classes_are_refused(tree: Tree, png: Png, tmp_path: Path) -> None:
    where = tree({"cat": [png(1)], "dog": []})
    with pytest.raises(DataError, match=r"pictures in every class folder of .* got none in 'dog'"):
        load_images(where)
    with pytest.raises(
        DataError, match=r"one subfolder per class in '.*cat', got 1 pictures direc"
    ):
        load_images(where / "cat")
    with pytest.raises(DataError, match=r"one subfolder per class in '.*dog', got no subfolders"):
        load_images(where / "dog")
    with pytest.raises(DataError, match=r"a folder with one subfolder per class, got '.*nothing'"):
        load_images(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"a folder with one subfolder per class, got 'no/where'"):
        load_images("no/where")


def test_a_folder_the_map_lacks_is_refused(tree: Tree, png: Png) -> None:
    where = tree({"cat": [png(1)], "dgo": [png(2)]})
    with pytest.raises(DataError, match=r"got images of 'dgo'. Did you mean 'dog'?"):
        load_images(where, classes=["cat", "dog"])

"""Pictures of a folder as they lie there."""

import pytest
import torch
from PIL import Image

from excise.data import read_folder
from excise.errors import DataError


def put(path, size=(8, 6), color=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_flat_and_nested_sorted_by_path(tmp_path):
    put(tmp_path / "b.png", color=(2, 2, 3))
    put(tmp_path / "a" / "deep" / "x.png", color=(1, 1, 2))
    put(tmp_path / "c.jpg")
    put(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = read_folder(tmp_path)
    assert found.names == ("a/deep/x.png", "b.png", "c.jpg")
    assert found.images.shape == (3, 3, 6, 8)
    assert found.images.dtype == torch.uint8
    assert found.images[:2, :, 0, 0].tolist() == [[1, 1, 2], [2, 2, 3]]
    assert found.unreadable == ()


def test_damaged_files_are_named_and_left_out(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    put(tmp_path / "c.png", color=(9, 9, 8))
    found = read_folder(tmp_path, size=4, channels=1)
    assert found.names == ("a.png", "c.png")
    assert found.unreadable == ("b.png",)
    assert found.images.shape == (2, 1, 4, 4)


def test_folders_that_give_nothing(tmp_path):
    with pytest.raises(DataError, match=r"a folder of pictures, got .*nowhere"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"or its subfolders, got none\. Known suffixes"):
        read_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="1 that cannot be read"):
        read_folder(tmp_path)
    put(tmp_path / "b.png")
    put(tmp_path / "c.png", size=(9, 9))
    with pytest.raises(DataError, match="pictures of one size"):
        read_folder(tmp_path)

"""Parquet files written here and read back; the hub, offline, from a cache made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from excise.data import SkippedPicturesWarning, load_data, load_images
from excise.errors import DataError

pytestmark = pytest.mark.fast
Png = Callable[..., bytes]
Write = Callable[..., None]


def test_both_splits_come_back(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    values = list(range(20))
    for shard in (0, 1):
        part = values[shard::2]
        write_parquet(
            tmp_path / "data" / f"train-0000{shard}-of-00002-abc.parquet",
            [png(v) for v in part],
            [v % 3 for v in part],
            names=["red", "green", "blue"],
        )
    write_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        [png(77)], [2], names=["red", "green", "blue"],
    )  # fmt: skip
    data = load_data(f"parquet:{tmp_path}")
    assert data.train.classes == ("red", "green", "blue")
    assert data.train.images[:, 0, 0, 0].tolist() == values[0::2] + values[1::2]
    assert data.train.labels.tolist() == [v % 3 for v in values[0::2] + values[1::2]]
    assert not data.train.mirror
    assert data.test is not None
    assert data.test.labels.tolist() == [2]
    # A limit crosses files and row groups and still finds the right rows.
    few = load_data(f"parquet:{tmp_path}", limit=7).train
    assert [v % 3 for v in few.images[:, 0, 0, 0].tolist()] == few.labels.tolist()
    assert len(few) == 7
    # A pattern that names only test files means just these.
    only = load_images(f"parquet:{tmp_path}/data/test-*.parquet")
    assert only.images[0, 0, 0, 0] == 77
    assert load_images(f"parquet:{tmp_path}/**/*.parquet", split="test").labels.tolist() == [2]


def test_folders_may_name_the_splits(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    base = tmp_path / "test"  # a folder above says nothing of the split
    write_parquet(base / "train" / "0000.parquet", [png(1)], [0])
    write_parquet(base / "validation" / "0000.parquet", [png(2)], [1])
    data = load_data(f"parquet:{base}")
    assert data.test is not None
    assert data.test.images[0, 0, 0, 0] == 2
    # Numbers only: both splits know both classes.
    assert data.train.classes == data.test.classes == ("0", "1")


def test_files_without_split_names_are_training(
    tmp_path: Path, png: Png, write_parquet: Write
) -> None:
    write_parquet(tmp_path / "a.parquet", [png(1)], [0], plain=True)
    write_parquet(tmp_path / "b.parquet", [png(2)], [1], plain=True)
    data = load_data(f"parquet:{tmp_path}")
    assert data.test is None
    assert data.train.labels.tolist() == [0, 1]
    assert load_data(f"parquet:{tmp_path / 'b.parquet'}").train.labels.tolist() == [1]


@pytest.mark.parametrize(
    "columns", [("img", "fine_label"), ("image", "labels"), ("whatever", "label")]
)
def test_usual_column_names_are_found(
    tmp_path: Path, png: Png, write_parquet: Write, columns: tuple[str, str]
) -> None:
    write_parquet(tmp_path / "a.parquet", [png(1)], [1], names=["x", "y"], columns=columns)
    images = load_images(f"parquet:{tmp_path}")
    assert images.classes == ("x", "y")
    assert images.labels.tolist() == [1]


def test_a_marked_label_column_is_found_by_its_mark(
    tmp_path: Path, png: Png, write_parquet: Write
) -> None:
    write_parquet(tmp_path / "a.parquet", [png(1)], [1], names=["x", "y"], columns=("i", "kind"))
    assert load_images(f"parquet:{tmp_path}").classes == ("x", "y")


def test_labels_may_be_names(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    write_parquet(tmp_path / "train.parquet", [png(1), png(2), png(3)], ["dog", "cat", "dog"])
    write_parquet(tmp_path / "test.parquet", [png(4)], ["dog"])
    data = load_data(f"parquet:{tmp_path}")
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.test is not None
    assert data.test.labels.tolist() == [1]
    write_parquet(tmp_path / "test.parquet", [png(4)], ["frog"])
    with pytest.raises(DataError, match=r"one of the 2 known classes, got images of 'frog'"):
        load_data(f"parquet:{tmp_path}")


def test_hidden_labels_are_no_test_split(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    write_parquet(tmp_path / "train.parquet", [png(1)], [0])
    write_parquet(tmp_path / "test.parquet", [png(2)], [-1])
    assert load_data(f"parquet:{tmp_path}").test is None
    write_parquet(tmp_path / "validation.parquet", [png(3)], [0])
    test = load_data(f"parquet:{tmp_path}").test
    assert test is not None
    assert test.images[0, 0, 0, 0] == 3
    write_parquet(tmp_path / "train.parquet", [png(1)], [-1])
    with pytest.raises(DataError, match=r"labeled training images, got the label -1 on all"):
        load_data(f"parquet:{tmp_path}")


def test_class_maps_meet_stored_names(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    write_parquet(tmp_path / "named.parquet", [png(1), png(2)], [0, 1], names=["cat", "dog"])
    named = f"parquet:{tmp_path / 'named.parquet'}"
    assert load_images(named, classes=["dog", "cat"]).labels.tolist() == [1, 0]
    write_parquet(tmp_path / "numbers.parquet", [png(1), png(2)], [0, 1])
    numbers = f"parquet:{tmp_path / 'numbers.parquet'}"
    images = load_images(numbers, classes=["dog", "cat"])  # names for 0 and 1
    assert images.labels.tolist() == [0, 1]
    assert images.classes == ("dog", "cat")
    with pytest.raises(DataError, match=r"a name for each of 2 classes, got 1 names"):
        load_images(numbers, classes=["dog"])


def test_damaged_pictures_are_named_by_file_and_row(
    tmp_path: Path, png: Png, write_parquet: Write
) -> None:
    pictures = [png(1), png(2), png(3), png(4), b"damaged", None]
    write_parquet(tmp_path / "a.parquet", pictures, [0] * 6)
    match = r"got 2 .*a.parquet row 4 \(.*a.parquet row 5 \(it holds no bytes\)"
    with pytest.raises(DataError, match=match):
        load_images(f"parquet:{tmp_path}")
    with pytest.warns(SkippedPicturesWarning, match=r"left out 2 of 6"):
        assert len(load_images(f"parquet:{tmp_path}", skip_unreadable=True)) == 4
    with pytest.warns(SkippedPicturesWarning, match=r"left out 2 of 6"):
        assert len(load_data(f"parquet:{tmp_path}", skip_unreadable=True).train) == 4


def test_files_that_cannot_be_used_are_refused(
    tmp_path: Path, png: Png, write_parquet: Write
) -> None:
    where = f"parquet:{tmp_path}"
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match=r"parquet files, got none at"):
        load_images(where)
    path.write_bytes(b"this is not parquet")
    with pytest.raises(DataError, match=r"a readable parquet file, got .*a.parquet"):
        load_images(where)
    write_parquet(path, [png(1)], [0], columns=("i", "number"))
    with pytest.raises(DataError, match=r"a label column \(label, labels, fine_label\), got colum"):
        load_images(where)
    write_parquet(path, [png(1)], [0.5])
    with pytest.raises(DataError, match=r"whole numbers or names, got double in column 'label'"):
        load_images(where)
    write_parquet(path, [png(1)], [None], label_type=pa.int64())
    with pytest.raises(DataError, match=r"a label for every picture, got an empty label"):
        load_images(where)
    write_parquet(path, [], [], label_type=pa.int64())
    with pytest.raises(DataError, match=r"a label for every picture, got no rows"):
        load_images(where)
    write_parquet(path, [png(1)], [2], names=["x", "y"])
    with pytest.raises(DataError, match=r"labels from 0 to 1 \(2 classes\), got labels from 2 to"):
        load_images(where)
    write_parquet(path, [png(1), png(2)], [-1, 0])
    with pytest.raises(DataError, match=r"got labels from -1 to 0"):
        load_images(where)


def test_columns_without_pictures_are_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"one column of encoded pictures .* got columns label in a"
    ):
        load_images(f"parquet:{tmp_path}")
    table = {"left": pa.array([b""]), "right": pa.array([b""]), "label": [0]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"got columns left, right, label in a.parquet. Name it"):
        load_images(f"parquet:{tmp_path}")


def test_data_sets_are_not_mixed(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    write_parquet(tmp_path / "one" / "train.parquet", [png(1)], [0])
    write_parquet(tmp_path / "two" / "train.parquet", [png(1)], [0])
    with pytest.raises(DataError, match=r"one data set at .*, got several: .*Choose one, for exam"):
        load_images(f"parquet:{tmp_path}")
    write_parquet(tmp_path / "one" / "train-1.parquet", [png(1)], [0], columns=("img", "labels"))
    with pytest.raises(
        DataError, match=r"same columns in every file, got \(image.bytes, label\) a"
    ):
        load_images(f"parquet:{tmp_path / 'one'}")


def test_test_files_alone_are_no_data_set(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    write_parquet(tmp_path / "test-0.parquet", [png(1)], [0])
    with pytest.raises(DataError, match=r"training images, got parquet files of test only"):
        load_images(f"parquet:{tmp_path}")


def test_broken_notes_of_the_hub_are_ignored(tmp_path: Path, png: Png) -> None:
    import pyarrow.parquet as pq

    table = pa.table({"image": [png(1)], "label": [0]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": "{not json"}), tmp_path / "a.parquet"
    )
    assert load_images(f"parquet:{tmp_path}").classes == ("0",)


@pytest.fixture
def hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: Png, write_parquet: Write
) -> Path:
    """What the hub's own download leaves behind; with it, and offline, no network is touched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "datasets--someone--things"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text(commit)
    write_parquet(
        snapshot / "snapshots" / commit / "data" / "train-0.parquet",
        [png(5)],
        [1],
        names=["x", "y"],
    )
    return tmp_path


def test_the_hub_is_read_like_any_parquet(hub_cache: Path) -> None:
    data = load_data("hub:someone/things", root=hub_cache)
    assert data.name == "hub:someone/things"
    assert data.train.classes == ("x", "y")
    assert data.train.images[0, 0, 0, 0] == 5


def test_a_failed_download_is_explained(hub_cache: Path) -> None:
    with pytest.raises(
        DataError, match=r"the data set some/other from the Hugging Face hub, got Lo"
    ):
        load_data("hub:some/other", root=hub_cache)


@pytest.mark.parametrize("name", ["hub:", "hub:things", "hub:a/b/c", "hub:../../etc"])
def test_a_hub_name_has_two_parts(name: str) -> None:
    with pytest.raises(DataError, match=f"expected hub:OWNER/NAME, got {name}"):
        load_data(name)


def test_the_hubs_converted_copy_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: Png, write_parquet: Write
) -> None:
    from huggingface_hub.errors import RevisionNotFoundError

    asked = []

    def download(name: str, *, repo_type: str, revision: str | None, **options: object) -> str:
        asked.append((name, repo_type, revision, options["allow_patterns"]))
        if revision is None or name == "a/empty":
            return str(tmp_path / "empty")
        if name == "a/none":
            # Its constructor wants an HTTP response of whichever library the version uses.
            raise RevisionNotFoundError.__new__(RevisionNotFoundError)
        write_parquet(tmp_path / "full" / "train" / "0000.parquet", [png(6)], [0])
        return str(tmp_path / "full")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_images("hub:a/b").images[0, 0, 0, 0] == 6
    assert asked == [
        ("a/b", "dataset", None, ["*.parquet"]),
        ("a/b", "dataset", "refs/convert/parquet", ["*.parquet"]),
    ]
    for name in ("a/none", "a/empty"):
        with pytest.raises(DataError, match=f"parquet files in the data set {name}, got none"):
            load_images(f"hub:{name}")


def test_labels_stay_int64(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    write_parquet(tmp_path / "a.parquet", [png(1)], [0], label_type=pa.uint8())
    assert load_images(f"parquet:{tmp_path}").labels.dtype == torch.int64

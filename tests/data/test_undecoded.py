"""Images that are listed, drawn, and only then decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.data.conftest import Png, Tree

from excise.data import SkippedPicturesWarning, defender_data, list_images, load_images, split_pool
from excise.errors import DataError
from excise.seeding import Rng

pytestmark = pytest.mark.fast
Write = Callable[..., None]


def test_what_is_drawn_is_the_same_whether_decoded_before_or_after(tree: Tree, png: Png) -> None:
    where = tree({name: [png(10 * k + i) for i in range(8)] for k, name in enumerate("abc")})
    listed, loaded = list_images(where), load_images(where)
    assert len(listed) == len(loaded) == 24
    assert listed.counts() == loaded.counts() == [8, 8, 8]
    assert listed.classes == loaded.classes
    for one, other in (
        (listed.load(), loaded),
        (listed.subset(torch.tensor([5, 20, 3])).load(), loaded.subset(torch.tensor([5, 20, 3]))),
    ):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    draws = [defender_data(images, spc=4, rng=Rng(3)) for images in (listed, loaded)]
    assert draws[0].everything().fingerprint() == draws[1].everything().fingerprint()
    pools = [split_pool(images, 0.5, Rng(1)).pool for images in (listed, loaded)]
    assert pools[0].load().fingerprint() == pools[1].fingerprint()


@pytest.mark.parametrize("source", ["folder", "parquet", "digits"])
@pytest.mark.parametrize("index", [[7, 5, 2], [3, 3, 0, 3], [9, 8, 7, 6], [-1, 0]])
def test_any_order_and_any_number_of_times(
    tmp_path: Path, tree: Tree, png: Png, write_parquet: Write, source: str, index: list[int]
) -> None:
    if source == "folder":
        listed = list_images(tree({str(k): [png(k)] for k in range(10)}))
    elif source == "parquet":
        for part in (range(6), range(6, 10)):
            file = tmp_path / "pq" / f"train-{part.start}.parquet"
            write_parquet(file, [png(k) for k in part], list(part), names=list("abcdefghij"))
        listed = list_images(f"parquet:{tmp_path / 'pq'}")
    else:
        listed = list_images("digits", limit=10)
    wanted, found = listed.load().subset(torch.tensor(index)), listed.subset(torch.tensor(index))
    assert torch.equal(found.load().images, wanted.images)
    assert torch.equal(found.load().labels, wanted.labels)


def test_damaged_pictures_are_left_out_of_any_order(
    tmp_path: Path, png: Png, write_parquet: Write
) -> None:
    pictures = [png(k) for k in range(6)]
    pictures[3] = b"damaged"
    write_parquet(tmp_path / "a.parquet", pictures, list(range(6)), names=list("abcdef"))
    listed = list_images(f"parquet:{tmp_path}", skip_unreadable=True)
    with pytest.warns(SkippedPicturesWarning, match="left out 1 of 4"):
        found = listed.subset(torch.tensor([5, 3, 1, 5, 0, 3])).load()
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist() == [5, 1, 5, 0]


def test_only_what_is_drawn_is_read(tree: Tree, png: Png) -> None:
    """All but the drawn pictures are damaged, and nobody notices."""
    where = tree({name: [png(10 * k + i) for i in range(8)] for k, name in enumerate("ab")})
    drawn = defender_data(list_images(where), spc=2, rng=Rng(0)).everything()
    images = load_images(where)
    kept = {
        i for i, one in enumerate(images.images) if any(torch.equal(one, d) for d in drawn.images)
    }
    files = sorted(where.rglob("*.png"))
    for i, file in enumerate(files):
        if i not in kept:
            file.write_bytes(b"damaged")
    again = defender_data(list_images(where), spc=2, rng=Rng(0)).everything()
    assert again.fingerprint() == drawn.fingerprint()
    with pytest.raises(DataError, match="12 that cannot be read"):
        list_images(where).load()


def test_a_split_that_is_not_there(tree: Tree, png: Png) -> None:
    where = tree({"a": [png(1)], "b": [png(2)]})
    with pytest.raises(DataError, match="a test split"):
        list_images(where, split="test")
    with pytest.raises(DataError, match="split 'train' or 'test'"):
        list_images(where, split="val")  # type: ignore[arg-type]

"""Where images come from and how they are split, once.

::

    data = load_data("cifar10")                                   # a whole data set
    images = load_images("my/folder", classes=["cat", "dog"])     # or your own pictures
    split = split_pool(data.train, 25_000, Rng(0))                # the victim's, the defender's
    defender = defender_data(split.pool, spc=10, rng=Rng(0))      # 9 + 1 of each class
    defender_data(list_images("my/million"), spc=10, rng=Rng(0))  # only these are decoded
"""

from excise.data.classes import describe_classes
from excise.data.decode import SkippedPicturesWarning
from excise.data.images import list_images, load_images
from excise.data.listing import Undecoded
from excise.data.loose import Pictures, read_folder
from excise.data.pictures import read_picture, to_png
from excise.data.sources import DataSet, has_test, load_data
from excise.data.splits import (
    DefenderSplit,
    PoolSplit,
    can_hold_back,
    defender_data,
    evenly,
    sample_positions,
    spc_counts,
    split_defender,
    split_off,
    split_pool,
)

__all__ = [
    "DataSet",
    "DefenderSplit",
    "Pictures",
    "PoolSplit",
    "SkippedPicturesWarning",
    "Undecoded",
    "can_hold_back",
    "defender_data",
    "describe_classes",
    "evenly",
    "has_test",
    "list_images",
    "load_data",
    "load_images",
    "read_folder",
    "read_picture",
    "sample_positions",
    "spc_counts",
    "split_defender",
    "split_off",
    "split_pool",
    "to_png",
]

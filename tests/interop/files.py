"""Files as a peer's benchmark writes them, made here."""

import numpy as np
import torch
from PIL import Image

from excise.models import build_model

ARCH = "excise:preactresnet18,width=2"


class Dataset:
    """Somebody's class, full of state."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


def network(classes=10, seed=0):
    """A network whose batch norms have seen something, so that no default would pass for it."""
    torch.manual_seed(seed)
    made = build_model(ARCH, classes=classes)
    made.train()(torch.rand(8, 3, 16, 16))
    return made.eval()


def state_of_images(count, poisoned, *, labels=None, inline=False):
    """What the peer keeps of a data set: which images are poisoned, and their pictures' places."""
    indicator = np.zeros(count)
    indicator[list(poisoned)] = 1
    labels = labels or {i: (np.int64(3), i % 10) for i in poisoned}
    entries = {}
    for i in np.array(list(poisoned)):  # keys are numpy's numbers there
        if inline:
            entries[i] = (Image.new("RGB", (4, 4)), *labels[int(i)])
        else:
            entries[i] = {"path": f"./record/x/{i}.png", "other_info": list(labels[int(i)])}
    return {
        "bd_data_container": {
            "save_folder_path": "./record/x", "data_dict": entries, "save_file_format": ".png",
        },
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(count),
        "poison_indicator": indicator,
        "save_folder_path": "./record/x",
    }  # fmt: skip


def result(state, **changes):
    """The dict the peer saves."""
    return {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": state,
        "data_path": "./data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": state_of_images(50, [4, 7, 41]),
        "bd_test": state_of_images(20, [0, 2, 19]),
    } | changes


def saved(path, content):
    torch.save(content, path)
    return path

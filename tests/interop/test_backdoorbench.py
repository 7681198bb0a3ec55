"""``excise import backdoorbench``: what a peer's file holds comes over as far as it can be read."""

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from tests.interop.files import ARCH, Dataset, network, result, saved, state_of_images
from torch import nn

from excise.attacks import load_victim
from excise.errors import ModelError, UnsafeFileError
from excise.experiments.backdoorbench import ARCHS, _unwrap, import_backdoorbench
from excise.models import build_model, load_model
from excise.models.inert import Archive
from excise.models.pickled import array_of

pytestmark = pytest.mark.fast


class Exploit:
    """Creates a directory when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def taken(path, out, **given):
    """Import a file; return the bundle's network and card."""
    import_backdoorbench(path, out, **({"arch": ARCH} | given))
    victim, card = load_victim(out)
    return victim, card


def test_the_network_answers_as_it_did(tmp_path):
    source = network()
    path = saved(tmp_path / "attack_result.pt", result(OrderedDict(source.body.state_dict())))
    victim, card = taken(path, tmp_path / "b")
    images = torch.rand(6, 3, 32, 32)
    # The peer normalizes its images before the network sees them.
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.243, 0.261])
    wanted = source.body((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(victim.model(images), wanted)
    torch.testing.assert_close(load_model(tmp_path / "b")(images), wanted)
    assert victim.model.classes[:2] == ("airplane", "automobile")
    assert victim.backdoor is None
    assert victim.poison_index.tolist() == [4, 7, 41]
    said = card["imported"]
    assert said["rule"] == {"name": "all-to-one", "target": 3}
    assert said["trigger"] == "not in the file"
    assert said["img_size"] == [32, 32, 3]
    assert "3 triggered images: paths of pictures" in said["left"]["bd_test"]
    assert "folder of the machine" in said["left"]["data_path"]
    assert len(said["sha256"]) == 64


@pytest.mark.parametrize("wrap", ["parameters", "parallel", "half", "views"])
def test_ways_to_save_a_state_dict(tmp_path, wrap):
    source = network()
    state = source.body.state_dict()
    if wrap == "parameters":
        names = dict(source.body.named_parameters())
        state = {n: nn.Parameter(t.clone()) if n in names else t for n, t in state.items()}
    elif wrap == "parallel":
        state = nn.DataParallel(source.body).state_dict()
    elif wrap == "half":
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    else:
        # Transposed, and all in one storage with an offset.
        whole = torch.cat([t.flatten().float() for t in state.values()])
        parts = whole.split([t.numel() for t in state.values()])
        state = {
            n: p.view(t.shape) if t.is_floating_point() else t
            for (n, t), p in zip(state.items(), parts, strict=True)
        }
        state["linear.weight"] = state["linear.weight"].t().contiguous().t()
    victim, _ = taken(saved(tmp_path / "a.pt", result(state)), tmp_path / "b")
    for name, tensor in source.body.state_dict().items():
        close = {"rtol": 1e-3, "atol": 1e-3} if wrap == "half" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(victim.model.body.state_dict()[name], tensor, **close)


def test_every_network_of_the_benchmark_has_one_here():
    for arch in ARCHS.values():
        with torch.device("meta"):
            assert build_model(arch, classes=3).body.state_dict()


def test_all_to_all(tmp_path):
    labels = {i: ((i + 1) % 10, i) for i in range(10)}
    test = state_of_images(10, range(10), labels=labels)
    path = saved(tmp_path / "a.pt", result(network().body.state_dict(), bd_test=test))
    _, card = taken(path, tmp_path / "b")
    assert card["imported"]["rule"] == {"name": "all-to-all", "num_classes": 10}


def test_what_cannot_be_taken_over_is_named(tmp_path):
    content = result(
        network().body.state_dict(),
        bd_test=state_of_images(5, [1, 2], inline=True),
        bd_train=Dataset(images=[1, 2], inner={"deep": Dataset(x=np.eye(2))}),
        cross_test=state_of_images(5, [3]),
        args=Dataset(lr=0.1),
        history=[{"loss": np.float64(0.5)}],
        extra=torch.zeros(3),
        odd=np.array(["a", "b"]),
        made_of=nn.Linear(2, 2),
    )
    content[(1, (2, 3))] = frozenset({1})
    victim, card = taken(saved(tmp_path / "a.pt", content), tmp_path / "b")
    assert victim.poison_index is None
    left = card["imported"]["left"]
    assert "2 triggered images, kept as Python objects" in left["bd_test"]
    assert "an object of" in left["bd_train"]
    assert "Dataset, which is not made" in left["bd_train"]
    assert "1 triggered images" in left["cross_test"]
    assert "Dataset" in left["args"]
    assert "a list" in left["history"]
    assert "a tensor" in left["extra"]
    assert "torch.nn.modules.linear.Linear" in left["made_of"]
    assert "trigger" in left
    assert card["imported"]["rule"] == {"name": "all-to-one", "target": 3}  # labels are plain


def test_the_first_version_of_the_format(tmp_path):
    train = {"x": torch.rand(2, 3, 4, 4), "y": torch.zeros(2), "original_index": np.array([9, 4])}
    test = {"x": torch.rand(1), "y": torch.rand(1)}
    content = result(network().body.state_dict(), bd_train=train, bd_test=test)
    path = saved(tmp_path / "a.pt", content)
    victim, card = taken(path, tmp_path / "b")
    assert victim.poison_index.tolist() == [4, 9]
    assert card["imported"]["rule"] is None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_rebuilt_from_bytes(tmp_path, protocol):
    for value in (np.array([[1.5, 2], [3, 4]]), np.arange(3, dtype=">i4"), np.zeros(0, bool),
                  np.asfortranarray(np.arange(6.0).reshape(2, 3))):  # fmt: skip
        torch.save({"a": value}, tmp_path / "a.pt", pickle_protocol=protocol)
        with Archive(tmp_path / "a.pt") as archive:
            found = array_of(archive.content()["a"])
        if protocol == 5:  # goes through a function of numpy's that is not followed
            assert found is None
        else:
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(found, value)


# --- files that mean harm -------------------------------------------------------------------------


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "the file ran code"


def refused(path, tmp_path, **given):
    with pytest.raises(ModelError) as caught:
        import_backdoorbench(path, tmp_path / "b", **({"arch": ARCH} | given))
    assert caught.value.remedy.endswith((".", "?"))
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "b").exists()
    return caught.value


PLACES = {
    "beside the network": lambda bad, state: result(state, args=bad),
    "as the poison": lambda bad, state: result(state, bd_train={"poison_indicator": bad}),
    "deep inside": lambda bad, state: result(state, log=[({"a": (bad,)},)]),
    "as a key": lambda bad, state: result(state) | {(bad,): 1},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", PLACES)
def test_an_exploit_beside_the_network_does_nothing(tmp_path, marker, place, protocol):
    source = network()
    content = PLACES[place](Exploit(marker), source.body.state_dict())
    path = tmp_path / "a.pt"
    torch.save(content, path, pickle_protocol=protocol)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the exploit must work where it is trusted"
    marker.rmdir()
    victim, _ = taken(path, tmp_path / "b")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(victim.model.body(images), source.body(images))


INSTEAD = {
    "the whole": lambda bad, state: bad,
    "the state dict": lambda bad, state: result(bad),
    "a tensor": lambda bad, state: result(state | {"conv1.weight": bad}),
    "the name": lambda bad, state: result(state, model_name=bad),
    "the size": lambda bad, state: result(state, img_size=bad),
    "the data": lambda bad, state: result(state, clean_data=bad),
}


@pytest.mark.parametrize("place", INSTEAD)
def test_an_exploit_in_the_network_is_refused(tmp_path, marker, place):
    path = saved(tmp_path / "a.pt", INSTEAD[place](Exploit(marker), network().body.state_dict()))
    arch = None if place == "the name" else ARCH
    assert f"{os.mkdir.__module__}.mkdir" in str(refused(path, tmp_path, arch=arch)) or place in (
        "the size", "a tensor",
    )  # fmt: skip


def test_transformers_that_resize_first():
    state = {f"module.1.{name}": torch.zeros(1) for name in ("class_token", "encoder.x")}
    assert _unwrap(state, "torchvision:vit_b_16")[0].keys() == {"class_token", "encoder.x"}
    assert _unwrap(state, "torchvision:vit_b_16")[1]
    assert _unwrap(state, "torchvision:resnet18")[0].keys() == {"1.class_token", "1.encoder.x"}


def pickled(path, data, storages=()):
    """Write an archive as torch does, around a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/byteorder", "little")
        for key, raw in dict(storages).items():
            archive.writestr(f"a/data/{key}", raw)
    return path


def tensor_program(size, stride, offset=0, length=1, kind="FloatStorage", key="0"):
    """A pickle of {'model': {'conv1.weight': a tensor as described}}."""

    def number(n):
        raw = n.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw

    def text(s):
        return b"X" + len(s).to_bytes(4, "little") + s.encode()

    def numbers(ns):
        return b"(" + b"".join(map(number, ns)) + b"t"

    storage = (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
        + number(length) + b"tQ"
    )  # fmt: skip
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size)
        + numbers(stride) + b"\x89}tR"
    )  # fmt: skip
    return b"\x80\x02}" + text("model") + b"}" + text("conv1.weight") + tensor + b"ss."


LIES = {
    "more numbers than there are": (tensor_program([2, 2], [2, 1], length=4), "4 bytes"),
    "beyond the end": (tensor_program([2], [1]), "a tensor up to 1"),
    "an offset beyond the end": (tensor_program([1], [1], offset=9), "a tensor up to 9"),
    "a negative offset": (tensor_program([1], [1], offset=-1), "_rebuild_tensor_v2"),
    "a negative size": (tensor_program([-1], [1]), "_rebuild_tensor_v2"),
    "another rank": (tensor_program([1, 1], [1]), "_rebuild_tensor_v2"),
    "an unknown storage": (tensor_program([1], [1], kind="QInt8Storage"), "_rebuild_tensor_v2"),
    "another entry": (tensor_program([1], [1], key="../../x"), "_rebuild_tensor_v2"),
    "a missing storage": (tensor_program([1], [1], key="7"), "KeyError"),
    "a terabyte of one number": (tensor_program([2**38], [0]), "1,099,511,627,776"),
    "more than can be counted": (tensor_program([2**40, 2**40], [0, 0]), ""),
    "nothing of something": (tensor_program([0], [1], length=5), "4 bytes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_tensors_that_lie(tmp_path, lie):
    program, said = LIES[lie]
    path = pickled(tmp_path / "a.pt", program, {"0": b"\0\0\0\0"})
    error = refused(path, tmp_path, mean=(0.0,), std=(1.0,), image_size=8)
    assert said in str(error)
    assert isinstance(error, UnsafeFileError) == lie.startswith("a terabyte")


BROKEN = {
    "empty": b"",
    "no end": b"\x80\x02}",
    "nothing to end with": b"\x80\x02.",
    "an unknown instruction": b"\x80\x02\xff.",
    "a memo that was never put": b"\x80\x02h\x07.",
    "a mark too many": b"\x80\x02}u.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
    "a text longer than the file": b"\x80\x02X\xff\xff\xff\x7fa.",
    "deep tuples as keys": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    "deep lists": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a maker of makers": b"\x80\x02cos\nmkdir\n" + b")R" * 300_000 + b".",
    "a set": b"\x80\x04\x8f(K\x01\x90.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer": b"\x80\x05\x97\x98.",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_pickles_that_are_none(tmp_path, kind):
    refused(pickled(tmp_path / "a.pt", BROKEN[kind]), tmp_path)


def test_endless_pickles_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("excise.models.pickled.MAX_STEPS", 1000)
    path = pickled(tmp_path / "a.pt", b"\x80\x02" + b"N" * 1001 + b".")
    error = refused(path, tmp_path)
    assert isinstance(error, UnsafeFileError)
    assert "at most 1,000 instructions" in str(error)


def test_a_truncated_file(tmp_path):
    path = saved(tmp_path / "a.pt", result(network().body.state_dict()))
    whole = path.read_bytes()
    for end in (0, 3, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:end])
        refused(path, tmp_path)


def test_a_damaged_number(tmp_path):
    path = saved(tmp_path / "a.pt", result(network().body.state_dict()))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)
    assert "Bad CRC-32" in str(refused(path, tmp_path))


def test_a_file_of_the_old_format(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(result({}), path, _use_new_zipfile_serialization=False)
    assert "format before torch 1.6" in str(refused(path, tmp_path))
    path.write_bytes(pickle.dumps(result({})))
    assert "a bare pickle" in str(refused(path, tmp_path))
    path.write_text("not a file of torch")
    assert "head b'not '" in str(refused(path, tmp_path))


def test_sizes_beyond_what_is_allowed(tmp_path):
    path = saved(tmp_path / "a.pt", result(network().body.state_dict()))
    error = refused(path, tmp_path, max_bytes=10_000)
    assert isinstance(error, UnsafeFileError)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 50_000_000)
    assert "grows at most 100 times" in str(refused(path, tmp_path))


def test_a_missing_file(tmp_path):
    assert "got nothing" in str(refused(tmp_path / "none.pt", tmp_path))
    assert "got a directory" in str(refused(tmp_path, tmp_path))


WRONG = {
    "no dict": ([1, 2], {}, "got a list"),
    "no model": ({"model_name": "x"}, {}, "got nothing"),
    "an empty model": (result({}), {}, "an empty one"),
    "a list of tensors": (result([torch.zeros(2)]), {}, "got a list"),
    "an unknown network": (result({"a": torch.zeros(1)}, model_name="preactresnet1"),
                           {"arch": None}, "Did you mean 'preactresnet18'"),
    "no name": (result({"a": torch.zeros(1)}, model_name=None), {"arch": None}, "got nothing"),
    "another network": (result({"a": torch.zeros(1)}), {}, "missing"),
    "unknown data": (result({"a": torch.zeros(1)}, clean_data="svhn"), {}, "got 'svhn'. Say what"),
    "no size": (result({"a": torch.zeros(1)}, img_size=None), {}, "--image-size"),
    "too few names": (result({"a": torch.zeros(1)}), {"classes": ["a"]}, "10 class names"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_missing_is_said(tmp_path, kind):
    content, given, said = WRONG[kind]
    assert said in str(refused(saved(tmp_path / "a.pt", content), tmp_path, **given))


def test_another_number_of_classes(tmp_path):
    path = saved(tmp_path / "a.pt", result(network(7).body.state_dict(), clean_data="gtsrb"))
    assert "tell 7 classes apart, not 10" in str(refused(path, tmp_path))


def test_a_whole_module_instead_of_its_state(tmp_path):
    path = saved(tmp_path / "a.pt", result(network().body))
    error = refused(path, tmp_path)
    assert "PreActResNet" in str(error)
    assert "state_dict()" in error.remedy

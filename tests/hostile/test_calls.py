"""Pickles that name nothing forbidden and yet fill memory: what they call is looked at first.

Every pickle here is written by hand, instruction by instruction; each takes the memory it says
from a reader that trusts torch's short list of names alone.
"""

import collections
import io
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch
from torch import nn

from excise.errors import ModelError, UnsafeFileError
from excise.models import build_model, load_model
from excise.models.pickled import read_pickle
from excise.models.weights import read_weights

ARCH = "excise:preactresnet18,width=2"
MUCH = 200_000_000
READER = torch._C.PyTorchFileReader
pytestmark = pytest.mark.fast


def zipped(path, data, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", data)
        archive.writestr("w/version", "3")
        archive.writestr("w/byteorder", "little")
        for name, held in dict(storages).items():
            archive.writestr(f"w/data/{name}", held)


def row(path, data, storages=()):
    """Write the format before torch 1.6: pickles in a row, then the storages."""
    assert not storages
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts) + data)


def bare(path, data, storages=()):
    assert not storages
    path.write_bytes(data)


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def named(word):
    module, _, name = word.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def called(word, *args):
    return named(word) + b"(" + b"".join(args) + b"tR"


def program(body):
    return b"\x80\x02" + body + b"."


def storage(key, length):
    return b"(" + text("storage") + named("torch.FloatStorage") + text(key) + text("cpu") + \
        number(length) + b"tQ"  # fmt: skip


def view(key, held, size, stride):
    """Return a tensor of one dimension over a storage of ``held`` numbers."""
    return called(
        "torch._utils._rebuild_tensor_v2", storage(key, held), number(0), number(size) + b"\x85",
        number(stride) + b"\x85", b"\x89", called("collections.OrderedDict"),
    )  # fmt: skip


def repeated(size=MUCH):
    """Return a tensor that repeats the one number that the file holds."""
    return view("0", 1, size, 0)


def hexed():
    body = called("_codecs.encode", text("x"), text("latin1"))
    for _ in range(28):
        body = called("_codecs.encode", body, text("hex"))
    return body


def many(first, body, times=300):
    """Return a tuple of something that is remembered, and of what is made of it many times."""
    return b"(" + first + b"q\x00" + body * times + b"t"


LONG = text("x" * 1_000_000)
WIDE = b"}(" + b"".join(number(k) + b"N" for k in range(100_000)) + b"u"
ENCODE = named("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R"
FILL = called("collections.OrderedDict") + b"h\x00b"
COUNT = named("collections.Counter") + b"h\x00\x85R"
TUPLE = b"(" + b"K\x01" * 100_000 + b"t"
SIZED = named("torch._utils._rebuild_meta_tensor_no_storage") + b"(" + \
    named("torch.float32") + b"h\x00h\x00\x89tR"  # fmt: skip
SCALES = b"](" + b"K\x01" * 100_000 + b"e"


def scaled(scales):
    """Return a quantized tensor of one dimension with a scale for each number."""
    return called(
        "torch._utils._rebuild_qtensor", storage("0", 1), number(0), number(100_000) + b"\x85",
        number(0) + b"\x85", b"(" + named("torch.per_channel_affine") + scales * 2 + b"K\x00t",
        b"\x89", b"}",
    )  # fmt: skip


TYPED = "torch._tensor._rebuild_from_type_v2"
BOMBS = {
    "zeros": called("builtins.bytearray", number(MUCH)),
    "zeros as Python 2 named them": called("__builtin__.bytearray", number(MUCH)),
    "zeros made in passing": b"}" + called("builtins.bytearray", number(MUCH)) + b"Ns",
    "zeros by another's hand": called(
        TYPED, named("builtins.bytearray"), named("torch.Tensor"), number(MUCH) + b"\x85", b"}"
    ),
    "digits of digits": hexed(),
    "one text many times": many(LONG, ENCODE),
    "one table many times": many(WIDE, FILL),
    "one counter many times": many(WIDE, COUNT),
    "sizes over and over": many(TUPLE, SIZED),
    "scales over and over": many(SCALES, scaled(b"h\x00")),
    "scales that are a view": scaled(repeated()),
    "a set of a view": called("builtins.set", repeated()),
    "a counter of a view": called("collections.Counter", repeated()),
    "a size of a view": called("torch.Size", repeated()),
    "a dictionary of a view": called("collections.OrderedDict", repeated()),
    "pairs that are views": called("collections.OrderedDict", b"](" + repeated() + b"e"),
    "attributes of a view": called("collections.OrderedDict") + repeated() + b"b",
    "a copy of a view": called(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor", repeated(),
        named("torch.float64"), text("cpu"), b"\x89",
    ),
    "a copy of a parameter": called(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        called("torch._utils._rebuild_parameter", repeated(), b"\x89", b"}"),
        named("torch.float64"), text("cpu"), b"\x89",
    ),
    "a copy of a tensor filled later": called(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        called("torch.FloatTensor") + b"(" + storage("0", 1) + number(0) + number(MUCH) + b"\x85"
        + number(0) + b"\x85tb",
        named("torch.float64"), text("cpu"), b"\x89",
    ),
    "a sparse tensor of a view": called(
        "torch._utils._rebuild_sparse_tensor",
        called("torch.serialization._get_layout", text("torch.sparse_coo")),
        b"(" + repeated() + repeated() + number(3) + b"\x85" + b"\x88t",
    ),
    "a tensor by its length": called("torch.FloatTensor", number(MUCH)),
    "a storage by its length": called("torch.storage.UntypedStorage", number(MUCH)),
    "a tensor filled with a view": called("torch.FloatTensor") + repeated() + b"b",
}  # fmt: skip


def refused(path, error=UnsafeFileError):
    """Load a file, expect Excise's own error and hardly any memory, and return the message."""
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            load_model(path, arch=ARCH, classes=3)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("bomb", BOMBS)
def test_calls_that_fill_memory(tmp_path, bomb):
    zipped(tmp_path / "w.pt", program(BOMBS[bomb]), {"0": b"\0\0\0\0"})
    assert (tmp_path / "w.pt").stat().st_size < 2_000_000
    message = refused(tmp_path / "w.pt")
    assert "nothing but tensors in" in message or "makes no more than it holds" in message


@pytest.mark.parametrize("save", [bare, row])
@pytest.mark.parametrize("bomb", ["zeros", "digits of digits", "one text many times"])
def test_the_same_in_the_old_format(tmp_path, save, bomb):
    save(tmp_path / "w.pt", program(BOMBS[bomb]))
    refused(tmp_path / "w.pt")


def test_the_message_names_what_is_called(tmp_path):
    zipped(tmp_path / "w.pt", program(BOMBS["zeros"]))
    message = refused(tmp_path / "w.pt")
    assert "expected nothing but tensors in" in message
    assert "got a pickle that names builtins.bytearray. It is not run. Save the weights" in message


@pytest.mark.parametrize("length", [100_000, 0])  # the honest one; what a lie could be
def test_one_storage_under_many_names(tmp_path, length):
    # torch finds a record whatever the case of its letters.
    keys = [f"{a}{b}{c}" for a in "aA" for b in "aA" for c in "aA"]
    body = b"}(" + b"".join(text(key) + view(key, length, length, 1) for key in keys) + b"u"
    zipped(tmp_path / "w.pt", program(body), {"aaa": bytes(400_000)})
    if length:
        assert len(torch.load(tmp_path / "w.pt", weights_only=True)) == 8
    assert "tensors that need more than its" in refused(tmp_path / "w.pt", ModelError)


def test_a_peers_file_that_copies_over_and_over():
    with pytest.raises(UnsafeFileError, match="makes no more than it holds"):
        read_pickle(program(BOMBS["one text many times"]), "a file")


def test_a_torch_that_cannot_tell_how_long_a_record_is(tmp_path, monkeypatch):
    class Older:
        def __init__(self, file):
            reader = READER(file)
            self.get_all_records, self.get_record = reader.get_all_records, reader.get_record

    monkeypatch.setattr("excise.models.calls.torch._C.PyTorchFileReader", Older)
    zipped(tmp_path / "w.pt", program(BOMBS["zeros"]))
    refused(tmp_path / "w.pt")


def two_in_one(hidden):
    """Return an archive in which Python's reader sees plain weights, and torch's ``hidden``.

    Python finds a directory by where it ends, torch by the offset at which it is said to be.
    """
    weights = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, weights)
    seen = weights.getvalue()
    (count, length, start), end = directory(hidden), hidden.rindex(b"PK\x05\x06")
    _, own, _ = directory(seen)
    assert length <= own
    first = hidden[:end] + bytes(own - length)
    tail = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, own, start, 0)
    return first + seen[: seen.rindex(b"PK\x05\x06")] + tail


def directory(archive):
    """Return how many entries an archive's directory has, its length and where it starts."""
    end = archive.rindex(b"PK\x05\x06")
    return struct.unpack("<HII", archive[end + 10 : end + 20])


def test_a_file_with_two_directories(tmp_path):
    inner = tmp_path / "inner"
    zipped(inner, program(called("builtins.bytearray", number(MUCH))))
    (tmp_path / "w.pt").write_bytes(two_in_one(inner.read_bytes()))
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        assert archive.namelist()[0] == "archive/data.pkl"
    assert "names builtins.bytearray" in refused(tmp_path / "w.pt")
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", program(b"}"))
        archive.writestr("w/version", "3")
        archive.writestr("w/data/0", bytes(5_000_000))
    (tmp_path / "w.pt").write_bytes(two_in_one(inner.read_bytes()))
    assert "bytes by one of two directories" in refused(tmp_path / "w.pt", ModelError)


def beside():
    """Return what people keep beside their weights and torch reads."""
    tagged = torch.arange(3.0)
    tagged.tag = "mine"
    shared = torch.arange(12.0)
    return {
        "bytes": b"\x00\xff" * 50_000,
        "bytearray": bytearray(b"\x01\x80" * 50_000),
        "no bytearray": bytearray(),
        "set": {1, 2, 3},
        "counter": collections.Counter("abca"),
        "ordered": collections.OrderedDict(a=1),
        "numbers": [3, 2.5, 1 + 2j, 2**70, None, True, "text"],
        "torch": [torch.Size([2, 3]), torch.device("cpu"), torch.float32, torch.strided],
        "parameter": nn.Parameter(torch.ones(2)),
        "tagged": tagged,
        "views": [shared[2:5], shared.view(3, 4).t(), shared[:1].expand(7), torch.tensor(1.0)],
        "sparse": torch.eye(3).to_sparse(),
        "compressed": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "scaled": torch.quantize_per_channel(
            torch.ones(2, 3), torch.ones(3), torch.zeros(3), 1, torch.qint8
        ),
        "meta": torch.zeros(3, device="meta"),
        "kinds": [torch.zeros(2, dtype=kind) for kind in (torch.cfloat, torch.bool, torch.half)],
        "empty": torch.zeros(0, 3),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of kinds it gives up
@pytest.mark.parametrize("old", [False, True])
def test_what_people_keep_beside_their_weights(tmp_path, old):
    network = build_model(ARCH, classes=3).body
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        **beside(),
    }
    if not old:
        content["float8"] = torch.zeros(3, dtype=torch.float8_e4m3fn)
        content["nested"] = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    torch.load(tmp_path / "w.pt", weights_only=True)
    loaded = load_model(tmp_path / "w.pt", arch=ARCH, classes=3)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.body.state_dict()[name], tensor)


def test_a_dictionary_as_python_2_wrote_it(tmp_path):
    pair = b"](" + text("a") + view("0", 2, 2, 1) + b"e"
    body = called("collections.OrderedDict", b"](" + pair + b"e")
    zipped(tmp_path / "w.pt", program(body), {"0": struct.pack("<2f", 1, 2)})
    assert read_weights(tmp_path / "w.pt")["a"].tolist() == [1, 2]


class Trusted:
    """A class of the caller's own."""


def test_what_the_caller_told_torch_to_trust(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "mine": Trusted()}, tmp_path / "w.pt")
    with pytest.raises(UnsafeFileError, match=r"names \S*Trusted"):
        read_weights(tmp_path / "w.pt")
    with torch.serialization.safe_globals([Trusted]):
        assert read_weights(tmp_path / "w.pt")["a"].tolist() == [1]

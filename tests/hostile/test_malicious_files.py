"""Files made to do harm: every one is refused with expected, got and remedy, and nothing runs.

The files are real: pickles that would create a marker file, bombs that would fill memory, headers
that lie. Each exploit is first shown to work on a reader that trusts it.
"""

import json
import os
import pickle
import re
import struct
import sys
import threading
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from excise.errors import ModelError, UnsafeFileError
from excise.models import build_model, load_model

ARCH = "excise:preactresnet18,width=2"
pytestmark = pytest.mark.fast


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class Evaluates:
    """The same through eval, which no list of bad modules would name."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.marker)!r})",)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "the file ran code"


@pytest.fixture
def state():
    return build_model(ARCH, classes=3).body.state_dict()


def refused(path, error=ModelError, **given):
    """Load a file, expect Excise's own error, and return its message."""
    with pytest.raises(ModelError) as caught:
        load_model(path, **({"arch": ARCH, "classes": 3} | given))
    assert isinstance(caught.value, error)
    assert caught.value.expected
    assert caught.value.got
    assert caught.value.remedy.endswith((".", "?"))
    message = str(caught.value)
    assert "Traceback" not in message
    assert len(message) < 700
    return message


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def modern(content, path):
    path.write_bytes(pickle.dumps(content, protocol=5))


WRAPS = {
    "bare": lambda bad, state: bad,
    "in the state dict": lambda bad, state: state | {"conv1.weight": bad},
    "beside the state dict": lambda bad, state: {"state_dict": state, "args": bad},
    "inside a wrapper": lambda bad, state: {"state_dict": {"conv1.weight": bad}},
    "deep inside": lambda bad, state: {"model": {"state_dict": state, "log": [((bad,),)]}},
    "as a key": lambda bad, state: OrderedDict([(("k", (bad,)), 1)]),
}


def test_the_exploits_work_where_they_are_trusted(tmp_path):
    for kind in (Exploit, Evaluates):
        marker = tmp_path / kind.__name__
        torch.save({"state_dict": kind(marker)}, tmp_path / "w.pt")
        torch.load(tmp_path / "w.pt", weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("save", [torch.save, legacy, plain])
@pytest.mark.parametrize("exploit", [Exploit, Evaluates])
@pytest.mark.parametrize("wrap", WRAPS)
def test_pickles_that_run_code(tmp_path, marker, state, wrap, exploit, save, suffix):
    path = tmp_path / f"weights{suffix}"
    save(WRAPS[wrap](exploit(marker), dict(state)), path)
    message = refused(path, UnsafeFileError)
    assert "nothing but tensors" in message
    assert "a pickle that names" in message
    assert "It is not run. Save the weights alone" in message


def test_a_modern_pickle(tmp_path, marker):
    modern({"state_dict": Exploit(marker)}, tmp_path / "w.pt")
    assert "a pickle that names" in refused(tmp_path / "w.pt", UnsafeFileError)


def test_environment_variables_do_not_open_the_door(tmp_path, marker, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Exploit(marker), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", UnsafeFileError)


def test_a_whole_network_is_not_unpickled(tmp_path):
    torch.save(build_model(ARCH, classes=3).body, tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt", UnsafeFileError)
    assert "names excise.models.preact_resnet.PreActResNet" in message
    assert "Save the weights alone: torch.save(model.state_dict(), FILE)" in message


def test_a_program_is_not_run(tmp_path):
    # What torch.jit.save writes, as far as a reader looks before it decides.
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/constants.pkl", pickle.dumps(()))
        archive.writestr("w/data.pkl", pickle.dumps({}))
        archive.writestr("w/code/__torch__.py", "import os")
    assert "a TorchScript program" in refused(tmp_path / "w.pt", UnsafeFileError)


def bomb(path, megabytes, level=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", level) as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}, protocol=2))
        for part in range(megabytes):
            archive.writestr(f"w/data/{part}", bytes(2**20))


def test_a_zip_bomb_larger_than_allowed(tmp_path):
    bomb(tmp_path / "w.pt", 8)
    size = (tmp_path / "w.pt").stat().st_size
    assert size < 2**20
    message = refused(tmp_path / "w.pt", UnsafeFileError, max_bytes=2**20)
    assert "8,388,6" in message
    assert "bytes once unpacked. If you trust the file, allow more: max_bytes=8388" in message


def test_a_zip_bomb_within_the_limit(tmp_path):
    bomb(tmp_path / "w.pt", 8)
    assert "an archive that grows at most 100 times" in refused(tmp_path / "w.pt", UnsafeFileError)


def test_a_bomb_of_overlapping_entries(tmp_path):
    # One megabyte, named a thousand times by the directory: no compression at all.
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data/0", bytes(2**20))
        first = archive.infolist()[0]
        for part in range(1, 1000):
            copy = zipfile.ZipInfo(f"w/data/{part}")
            copy.file_size = copy.compress_size = first.file_size
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            archive.filelist.append(copy)
    assert "at most 100 times" in refused(path, UnsafeFileError)


def test_a_tensor_that_repeats_one_number(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1).expand(10**12)}, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 10_000
    message = refused(tmp_path / "w.pt", UnsafeFileError)
    assert "bytes of tensors" in message
    assert "got 4,000,000,000,000" in message


def claims(path, save, numel):
    """Write 7,777 numbers in a storage that claims ``numel``."""
    save({"conv1.weight": torch.zeros(7777)}, path)
    honest = b"M" + struct.pack("<H", 7777)
    lie = b"\x8a\x08" + struct.pack("<q", numel)
    if save is legacy:
        path.write_bytes(path.read_bytes().replace(honest, lie))
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(honest, lie) if name.endswith("pkl") else part)


@pytest.mark.parametrize("save", [torch.save, legacy])
@pytest.mark.parametrize("numel", [10**5, 10**8, 10**12, 2**62, -5])
def test_a_storage_larger_than_its_bytes(tmp_path, save, numel):
    claims(tmp_path / "w.pt", save, numel)
    assert "expected whole weights in" in refused(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (torch.save, "expected a whole archive in"),
        (legacy, "expected whole weights in"),
        (save_file, "a safetensors header inside|whole safetensors in"),
    ],
)
def test_files_cut_short(tmp_path, state, save, message):
    save(state, tmp_path / "w")
    whole = (tmp_path / "w").read_bytes()
    for length in (1, 7, 8):
        (tmp_path / "w").write_bytes(whole[:length])
        refused(tmp_path / "w")
    for length in (20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "w").write_bytes(whole[:length])
        found = refused(tmp_path / "w")
        assert re.search(message, found)
        assert "The file is truncated, damaged or no weights file; fetch it again." in found


def test_damaged_bytes_never_escape_as_another_error(tmp_path, state):
    generator = torch.Generator().manual_seed(0)
    for save, name in ((torch.save, "z"), (legacy, "l"), (save_file, "s")):
        path = tmp_path / name
        save(state, path)
        whole = bytearray(path.read_bytes())
        for _ in range(15):
            spot = int(torch.randint(min(len(whole), 4000), (), generator=generator))
            broken = whole.copy()
            broken[spot] ^= 1 << int(torch.randint(8, (), generator=generator))
            path.write_bytes(broken)
            try:
                load_model(path, arch=ARCH, classes=3)
            except ModelError as error:
                assert error.remedy  # noqa: PT017 (a flipped bit may also do no harm)


@pytest.mark.parametrize("length", [16, 1000, 10_000])
def test_random_bytes(tmp_path, length):
    generator = torch.Generator().manual_seed(length)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x05", struct.pack("<Q", 8) + b"{"):
        noise = torch.randint(256, (length,), generator=generator, dtype=torch.uint8)
        (tmp_path / "w").write_bytes(start + noise.numpy().tobytes())
        refused(tmp_path / "w")


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert "got an empty file. The file is truncated" in refused(tmp_path / "empty")
    (tmp_path / "page").write_text("<!doctype html>")
    assert "which starts with b'<!doctyp'" in refused(tmp_path / "page")
    assert "got nothing. Check the path." in refused(tmp_path / "missing")
    (tmp_path / "dir").mkdir()
    assert "got no card.json" in refused(tmp_path / "dir")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("readme", "hello")
    assert "expected whole weights in" in refused(tmp_path / "zip")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no path there")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    reader = threading.Thread(target=refused, args=(tmp_path / "w.pt",), daemon=True)
    reader.start()
    reader.join(10)
    assert not reader.is_alive()
    assert "got something else" in refused(tmp_path / "w.pt")


def safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "longer than the file": ({"a": tensor([1], 0, 4)}, b"1234", 10**15),
    "almost the largest number": ({"a": tensor([1], 0, 4)}, b"1234", 2**64 - 1),
    "shorter than its text": ({"a": tensor([1], 0, 4)}, b"1234", 5),
    "of one byte": ({"a": tensor([1], 0, 4)}, b"1234", 1),
    "no JSON": (b"{{{{{{{{", b"1234", None),
    "no UTF-8": (b'{"\xff\xfe": 1}', b"", None),
    "deeply nested": (b'{"a":' + b"[" * 100_000, b"", None),
    "offsets beyond the file": ({"a": tensor([1000], 0, 4000)}, b"1234", None),
    "offsets that overlap": ({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, b"1234", None),
    "a shape that overflows": ({"a": tensor([2**62, 2**62, 4], 0, 4)}, b"1234", None),
    "a shape that does not fit": ({"a": tensor([2], 0, 4)}, b"1234", None),
    "negative offsets": ({"a": tensor([1], -4, 0)}, b"1234", None),
    "bytes nobody names": ({"a": tensor([1], 0, 4)}, b"1234567890", None),
    "an unknown type": ({"a": tensor([1], 0, 4) | {"dtype": "PY"}}, b"1234", None),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_safetensors_headers_that_lie(tmp_path, lie):
    header, data, length = HEADERS[lie]
    safetensors(tmp_path / "w.safetensors", header, data, length)
    refused(tmp_path / "w.safetensors")


def test_a_header_made_to_exhaust_the_reader(tmp_path):
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(100_000_100)  # sparse: it takes no disk
    assert "a safetensors header of at most 100,000,000 bytes" in refused(path, UnsafeFileError)


def test_no_tensors_at_all(tmp_path):
    safetensors(tmp_path / "w", b"{}")
    assert "expected a state dict" in refused(tmp_path / "w")
    for content, got in (([1], "list"), ({}, "an empty one"), (torch.zeros(1), "Tensor")):
        torch.save(content, tmp_path / "w")
        assert f"got {got}" in refused(tmp_path / "w")


def test_values_that_are_no_plain_tensors(tmp_path, state):
    bad = {
        "int": 3,
        "a torch.float32 tensor, torch.sparse_coo": torch.eye(3).to_sparse(),
        "a torch.float32 tensor, torch.strided on meta": torch.zeros(3, device="meta"),
        "a torch.complex64 tensor": torch.zeros(3, dtype=torch.complex64),
    }
    for got, value in bad.items():
        torch.save(dict(state) | {"linear.bias": value}, tmp_path / "w.pt")
        message = refused(tmp_path / "w.pt")
        assert "plain tensors by name" in message
        assert f"'linear.bias': {got}" in message
    torch.save({3: torch.zeros(1)}, tmp_path / "w.pt")
    assert "got 3: a torch.float32 tensor" in refused(tmp_path / "w.pt")


def test_names_cannot_steer_a_terminal_or_flood_it(tmp_path, state):
    torch.save(dict(state) | {"\x1b]0;owned\x07" + "x" * 10**6: torch.zeros(1)}, tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt")
    assert "\x1b" not in message
    assert "1 it does not have (?]0;owned?xxx" in message

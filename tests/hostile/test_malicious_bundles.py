"""Bundles made to do harm: cards that name code, downloads or a network that fills memory."""

import json
import os
import resource
import sys

import pytest
import torch

from excise.errors import ModelError, UnsafeFileError
from excise.models import build_model, load_bundle, load_model, read_card, save_bundle

pytestmark = pytest.mark.fast


@pytest.fixture
def bundle(tmp_path):
    save_bundle(tmp_path / "b", build_model("excise:preactresnet18,width=2", classes=3), {})
    return tmp_path / "b"


def refused(bundle):
    """Load a bundle, expect Excise's own error, and return its message."""
    with pytest.raises(ModelError) as caught:
        load_model(bundle)
    assert caught.value.remedy.endswith((".", "?"))
    return str(caught.value)


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_an_exploit_as_the_weights(bundle, tmp_path):
    torch.save({"state_dict": {}, "x": Exploit(tmp_path / "m")}, bundle / "model.safetensors")
    with pytest.raises(
        UnsafeFileError, match=r"nothing but tensors .* that names (posix|nt).mkdir"
    ):
        load_model(bundle)
    assert not (tmp_path / "m").exists()


def rewrite(bundle, **changes):
    path = bundle / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


ARCHS = {
    "os:system": "expected a built-in architecture",
    "builtins:exec": "expected a built-in architecture",
    "package.module:factory": "expected a built-in architecture",
    "subprocess:run,args=id": "expected a built-in architecture",
    "timm:hf_hub:someone/theirs": "which would download or read files",
    "timm:hf-hub:someone/theirs": "which would download or read files",
    "hf_hub:someone/theirs": "which would download or read files",
    "timm:local-dir:/etc": "which would download or read files",
    "timm:../../etc/passwd": "which would download or read files",
    "torchvision:resnet18,weights=DEFAULT": "weights are loaded from your file",
    "timm:resnet18,pretrained=1": "weights are loaded from your file",
    "timm:resnet18,checkpoint_path=/etc/passwd": "weights are loaded from your file",
    "timm:resnet18,act_layer=os.system": "numbers, true or false",
    "torchvision:../x": "the name of a classifier in torchvision",
    "excise:../x": "the name of a model",
    "excise:preactresnet18,width=99999999": "a width from 1 to 1024",
    "torchvision:resnet50,width_per_group=99999999": "at most 8192",
    "nothing": "excise:NAME, torchvision:NAME, timm:NAME or package.module:factory",
    "a,b": "name,key=value,key=value with every key once",
}


@pytest.mark.parametrize("arch", ARCHS)
def test_cards_that_name_what_must_not_run(bundle, arch):
    rewrite(bundle, arch=arch)
    message = refused(bundle)
    assert ARCHS[arch] in message
    with pytest.raises(ModelError, match="expected"):
        load_bundle(bundle)


def test_a_card_cannot_import_a_package(bundle, tmp_path, monkeypatch):
    (tmp_path / "trap_from_a_card.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(bundle, arch="trap_from_a_card:make")
    refused(bundle)
    assert "trap_from_a_card" not in sys.modules


@pytest.mark.parametrize("arch", ["excise:preactresnet18,width=1024", "timm:vit_7b_patch16_dinov3"])
def test_a_card_that_names_a_huge_network_takes_no_memory(bundle, arch):
    # 11 and 27 GB if they were built.
    rewrite(bundle, arch=arch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "arch=" in refused(bundle)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_fields_where_there_is_no_skeleton_are_refused(bundle):
    rewrite(bundle, arch="torchvision:regnet_x_400mf,stochastic_depth_prob=0.5")
    assert "Cannot copy out of meta tensor" in refused(bundle)


CARDS = {
    "empty": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"version": "\xff\xfe"}',
    "no object": b"[1]",
    "no number": b'{"version": NaN}',
    "deeply nested": b"[" * 200_000,
    "a number of a million digits": b'{"version": ' + b"9" * 10**6 + b"}",
}


@pytest.mark.parametrize("kind", CARDS)
def test_cards_that_are_no_cards(bundle, kind):
    (bundle / "card.json").write_bytes(CARDS[kind])
    message = refused(bundle)
    assert "card.json" in message


def test_a_card_larger_than_allowed(bundle):
    with (bundle / "card.json").open("wb") as file:
        file.truncate(16 * 1024**2 + 1)  # sparse
    with pytest.raises(UnsafeFileError, match=r"at most 16,777,216 bytes in .*A card is a page"):
        read_card(bundle)

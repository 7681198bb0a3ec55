"""Named streams: stable, independent of one another, and never torch's own."""

import hashlib
import random

import numpy as np
import pytest
import torch

from excise.seeding import Rng

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("seed", "path", "name", "value"),
    [
        # sha256("0:/init"), first 8 bytes, big endian, halved; see the test after this one.
        (0, (), "init", 4131455102156544978),
        (0, ("fit",), "epoch/3", 7362985931647230776),
        (-1, (), "a", 6266450117769742097),
        (2**80, (), "a", 4659130682352326858),
    ],
)
def test_the_numbers_are_the_same_on_every_machine_and_in_every_version(seed, path, name, value):
    rng = Rng(seed)
    for part in path:
        rng = rng.child(part)
    assert rng.number(name) == value


def test_the_rule_behind_the_numbers():
    for seed, name in ((0, "init"), (7, "a/b"), (-3, "β")):
        digest = hashlib.sha256(f"{seed}:/{name}".encode()).digest()
        assert Rng(seed).number(name) == int.from_bytes(digest[:8], "big") // 2


def test_numbers_fit_a_signed_64_bit_seed():
    assert all(0 <= Rng(seed).number("x") < 2**63 for seed in range(200))


def test_names_and_seeds_and_paths_are_streams_of_their_own():
    streams = {
        Rng(seed).child(child).number(name)
        for seed in range(10)
        for child in ("a", "b", "method")
        for name in ("a", "b", "epoch/1", "epoch/11")
    }
    assert len(streams) == 10 * 3 * 4


def test_a_new_use_shifts_no_other():
    before = torch.rand(5, generator=Rng(3).torch("poison"))
    rng = Rng(3)
    torch.rand(100, generator=rng.torch("something new"))
    rng.numpy("another").random(100)
    assert torch.equal(torch.rand(5, generator=rng.torch("poison")), before)


def test_every_call_starts_the_stream_again():
    rng = Rng(1)
    assert torch.equal(
        torch.rand(9, generator=rng.torch("x")), torch.rand(9, generator=rng.torch("x"))
    )
    assert rng.numpy("x").random() == rng.numpy("x").random()
    assert rng.integer("x", 0, 10**9) == rng.integer("x", 0, 10**9)


def test_a_child_is_a_path():
    assert Rng(2).child("a").child("b") == Rng(2, "/a/b")
    assert Rng(2).child("a").number("b") == Rng(2).number("a/b")
    assert Rng(2) == Rng(2)
    assert Rng(2) != Rng(3)


def test_integers_are_drawn_from_the_whole_half_open_range():
    drawn = {Rng(seed).integer("target", 3, 6) for seed in range(60)}
    assert drawn == {3, 4, 5}


def test_a_generator_lies_where_it_is_asked():
    assert Rng(0).torch("x", "cpu").device.type == "cpu"
    assert Rng(0).torch("x").initial_seed() == Rng(0).number("x")


def test_nothing_global_is_touched():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state())
    rng = Rng(5)
    rng.torch("a")
    rng.numpy("a")
    rng.integer("a", 0, 9)
    with rng.scope("a"):
        torch.rand(10)
    assert random.getstate() == before[0]
    assert repr(np.random.get_state()) == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_scope_seeds_and_restores_also_after_an_exception():
    with Rng(5).scope("init"):
        first = torch.rand(4)
    torch.rand(11)
    before = torch.get_rng_state()

    def fail():
        with Rng(5).scope("init"):
            assert torch.equal(torch.rand(4), first)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
    with Rng(5).scope("dropout"):
        assert not torch.equal(torch.rand(4), first)

"""A victim's bundle: what it holds, what comes back, and what a damaged one says."""

import json

import pytest
import torch
from torch import nn

from excise.attacks import Victim, load_backdoor, load_victim, save_victim
from excise.errors import ModelError, TriggerError
from excise.models import build_model
from excise.seeding import Rng
from excise.testing import differences
from excise.triggers import Patch
from excise.types import AllToAll, AllToOne, Backdoor

pytestmark = pytest.mark.fast

TRIGGER = Patch(torch.ones(1, 2, 2), torch.ones(2, 2, dtype=torch.bool), -2, -2)


RULE = AllToOne(2)


def victim(rule=RULE, index=(1, 4)):
    model = build_model(
        "excise:preactresnet18,width=2", classes=4, in_channels=1, input_size=(8, 8), rng=Rng(0)
    ).eval()
    backdoor = Backdoor(TRIGGER, rule) if rule is not None else None
    return Victim(model, backdoor, None if index is None else torch.tensor(index))


@pytest.mark.parametrize("rule", [AllToOne(2), AllToAll(4)])
@pytest.mark.parametrize("half", [False, True])
def test_a_victim_goes_round(tmp_path, rule, half):
    made = victim(rule)
    save_victim(tmp_path / "v", made, {"made": {"seed": 3}}, half=half)
    loaded, card = load_victim(tmp_path / "v")
    assert card["made"] == {"seed": 3}
    assert half or differences(made.model, loaded.model) == []
    assert loaded.backdoor.rule == rule
    assert loaded.backdoor.train_trigger is None
    assert torch.equal(loaded.poison_index, torch.tensor([1, 4]))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.backdoor.trigger(images), TRIGGER(images))
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == [
        "card.json", "model.safetensors", "poison.safetensors", "trigger.json",
        "trigger.safetensors",
    ]  # fmt: skip


def test_a_clean_twin_goes_round(tmp_path):
    save_victim(tmp_path / "v", victim(None, None), {})
    loaded, card = load_victim(tmp_path / "v")
    assert loaded.backdoor is None
    assert loaded.poison_index is None
    assert "rule" not in card
    names = sorted(path.name for path in (tmp_path / "v").iterdir())
    assert names == ["card.json", "model.safetensors"]


def test_an_older_victim_is_replaced_whole(tmp_path):
    save_victim(tmp_path / "v", victim(), {})
    save_victim(tmp_path / "v", victim(None, None), {})
    assert load_victim(tmp_path / "v")[0].backdoor is None


def test_a_victim_that_cannot_be_written_leaves_the_older_one(tmp_path):
    save_victim(tmp_path / "v", victim(), {"made": 1})
    broken = Victim(victim().model, Backdoor(nn.Identity(), AllToOne(0)), None)
    with pytest.raises(TriggerError, match="a trigger of the registry"):
        save_victim(tmp_path / "v", broken, {"made": 2})
    assert load_victim(tmp_path / "v")[1]["made"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


RULES = [
    None, 3, {}, {"name": "all-to-one"}, {"name": "all-to-one", "target": "first"},
    {"name": "all-to-all"}, {"name": "all-to-some", "target": 1}, ["all-to-one", 2],
    {"name": "all-to-one", "target": 1e400}, {"name": "all-to-one", "target": -1},
    {"name": "all-to-one", "target": 1.5}, {"name": "all-to-all", "num_classes": 1e400},
    {"name": "all-to-all", "num_classes": 0},
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_that_is_none_is_explained(tmp_path, rule):
    save_victim(tmp_path / "v", victim(), {})
    with pytest.raises(
        TriggerError,
        match=r"expected a card whose rule is all-to-one with a target, or all-to-all with "
        r"num_classes, got .*\. Give a victim made by `excise plant`\.",
    ):
        load_backdoor(tmp_path / "v", {"rule": rule})


def test_a_card_without_a_rule_is_a_twins(tmp_path):
    save_victim(tmp_path / "v", victim(), {})
    card = json.loads((tmp_path / "v" / "card.json").read_text())
    del card["rule"]
    (tmp_path / "v" / "card.json").write_text(json.dumps(card))
    assert load_victim(tmp_path / "v")[0].backdoor is None


@pytest.mark.parametrize("content", [b"", b"not safetensors"])
def test_a_damaged_list_of_poison_is_explained(tmp_path, content):
    save_victim(tmp_path / "v", victim(), {})
    (tmp_path / "v" / "poison.safetensors").write_bytes(content)
    with pytest.raises(
        ModelError,
        match=r"expected a poison\.safetensors with the tensor poison_index, got .*Plant the v",
    ):
        load_victim(tmp_path / "v")


def test_a_list_of_poison_without_the_list_is_explained(tmp_path):
    from safetensors.torch import save_file

    save_victim(tmp_path / "v", victim(), {})
    save_file({"other": torch.zeros(1)}, tmp_path / "v" / "poison.safetensors")
    with pytest.raises(ModelError, match=r"got .*\(KeyError"):
        load_victim(tmp_path / "v")


def test_no_bundle_is_explained(tmp_path):
    with pytest.raises(ModelError, match="a bundle in"):
        load_victim(tmp_path / "none")

"""The contract of an attack, and of an attack that poisons data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.attacks import CleanLabel, DirtyLabel, Victim, load_victim, save_victim
from excise.attacks.poisoning import poison
from excise.data import load_data
from excise.errors import DataError, SpecError
from excise.models import Network, build_model
from excise.seeding import Rng
from excise.testing.guards import (
    Interruption,
    differences,
    interrupt_at,
    nothing_global_changes,
    rebuilt_from_spec,
)
from excise.training import Recipe
from excise.types import (
    AllToAll,
    AllToOne,
    Attack,
    Backdoor,
    Images,
    LabelledImages,
    Row,
    as_floats,
    round_to_8_bits,
)

__all__ = [
    "AttackContract",
    "CleanLabelContract",
    "DirtyLabelContract",
    "DrawnContract",
    "MakeAttack",
]

#: From settings to the attack that has them; settings not given are the attack's defaults.
MakeAttack = Callable[..., Any]

RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=0.05)


class AttackContract:
    """What every attack promises. Override :meth:`attack`; the rest is tests."""

    @pytest.fixture
    def attack(self) -> Attack:
        """Return the attack, fit for 8 × 8 gray images."""
        pytest.fail("override the fixture `attack`")

    @pytest.fixture
    def images(self) -> LabelledImages:
        """Return 120 digits, 12 of each class."""
        return load_data("digits", limit=120).train

    def network(self, images: LabelledImages, seed: int = 0) -> Network:
        """Return a fresh tiny network for ``images``."""
        return build_model(
            "excise:preactresnet18,width=2",
            classes=images.classes,
            in_channels=images.shape[0],
            input_size=images.shape[1:],
            rng=Rng(seed),
        )

    def plant(
        self,
        attack: Attack,
        images: LabelledImages,
        seed: int = 0,
        **options: Any,
    ) -> Victim:
        """Return the victim that two epochs make of a fresh network."""
        model = self.network(images)
        victim: Victim = attack.plant(model, images, RECIPE, Rng(seed), **options)
        assert victim.model is model
        return victim

    def test_it_plants(self, attack: Attack, images: LabelledImages) -> None:
        """The network comes back in eval mode, trained; each epoch is reported."""
        rows: list[Row] = []
        victim = self.plant(attack, images, on_round=rows.append)
        assert not any(module.training for module in victim.model.modules())
        assert differences(victim.model, self.network(images))
        assert len(rows) >= RECIPE.epochs
        index = victim.poison_index
        if index is not None:
            assert index.dtype == torch.int64
            assert index.tolist() == sorted(set(index.tolist()))
            assert index.min() >= 0
            assert index.max() < len(images)

    def test_it_leaves_the_clean_images_alone(self, attack: Attack, images: LabelledImages) -> None:
        """Images as 8 bits and as floats; nor does anything global change."""
        floats = LabelledImages(images.floats(), images.labels, images.classes)
        for given in (images, floats):
            before = given.fingerprint()
            with nothing_global_changes():
                self.plant(attack, given)
            assert given.fingerprint() == before

    def test_the_same_seed_plants_the_same(self, attack: Attack, images: LabelledImages) -> None:
        """Weights, poisoned images, trigger and target, to the last bit, in whatever mode."""
        first = self.plant(attack, images)
        with torch.no_grad():
            second = self.plant(attack, images)
        assert differences(first.model, second.model) == []
        assert _is_equal(first.poison_index, second.poison_index)
        shown = images.floats()
        assert (first.backdoor is None) == (second.backdoor is None)
        if first.backdoor is not None and second.backdoor is not None:
            assert first.backdoor.rule == second.backdoor.rule
            assert torch.equal(first.backdoor.trigger(shown), second.backdoor.trigger(shown))

    def test_another_seed_plants_another(self, attack: Attack, images: LabelledImages) -> None:
        """A seed stands for everything random."""
        one, other = self.plant(attack, images, 0), self.plant(attack, images, 1)
        assert differences(one.model, other.model)

    def test_an_interrupted_planting_goes_on(
        self, attack: Attack, images: LabelledImages, tmp_path: Path
    ) -> None:
        """It ends with the weights of an undisturbed one."""
        rows: list[Row] = []
        undisturbed = self.plant(attack, images, on_round=rows.append)
        shown = images.floats()
        for number in sorted({1, len(rows) // 2, len(rows) - 1} - {0}):
            folder = tmp_path / str(number)
            with nothing_global_changes(), pytest.raises(Interruption):
                self.plant(attack, images, checkpoints=folder, on_round=interrupt_at(number))
            assert folder.is_dir()
            again: list[Row] = []
            resumed = self.plant(attack, images, checkpoints=folder, on_round=again.append)
            assert len(again) <= len(rows) - number
            assert differences(resumed.model, undisturbed.model) == []
            if undisturbed.backdoor is not None and resumed.backdoor is not None:
                expected = undisturbed.backdoor.trigger(shown)
                assert torch.equal(resumed.backdoor.trigger(shown), expected)

    def test_checkpoints_of_another_run_are_refused(
        self, attack: Attack, images: LabelledImages, tmp_path: Path
    ) -> None:
        """Another seed must not go on from what this one left."""
        with pytest.raises(Interruption):
            self.plant(attack, images, checkpoints=tmp_path, on_round=interrupt_at(1))
        with pytest.raises(DataError, match="a checkpoint of this very run"):
            self.plant(attack, images, 1, checkpoints=tmp_path)

    def test_its_victim_goes_to_disk_and_back(
        self, attack: Attack, images: LabelledImages, tmp_path: Path
    ) -> None:
        """A bundle holds the network, the trigger, the rule and what was poisoned."""
        victim = self.plant(attack, images)
        save_victim(tmp_path / "victim", victim, {"made": "by a test"})
        loaded, card = load_victim(tmp_path / "victim")
        assert card["made"] == "by a test"
        assert differences(victim.model, loaded.model) == []
        assert _is_equal(victim.poison_index, loaded.poison_index)
        assert (victim.backdoor is None) == (loaded.backdoor is None)
        if victim.backdoor is not None and loaded.backdoor is not None:
            shown = images.floats()
            assert loaded.backdoor.rule == victim.backdoor.rule
            assert torch.equal(loaded.backdoor.trigger(shown), victim.backdoor.trigger(shown))

    def test_its_spec_builds_it_again(self, attack: Attack) -> None:
        """What stands in the record is enough to run it again."""
        assert rebuilt_from_spec("attack", attack) == attack


class _Made:
    """What the contracts below share: the attack is made from settings."""

    @pytest.fixture
    def make(self) -> MakeAttack:
        """Return the attack's class, or a function that takes its settings."""
        pytest.fail("override the fixture `make`: from settings to your attack")

    @pytest.fixture
    def images(self) -> LabelledImages:
        """Return 120 digits, 12 of each class."""
        return load_data("digits", limit=120).train

    def test_a_target_that_is_no_class_is_refused(
        self, make: MakeAttack, images: LabelledImages
    ) -> None:
        """Targets count from 0."""
        with pytest.raises(SpecError, match=r"a target from 0 to 9, got 10\. The data has 10"):
            make(target=10).target_rule(images.num_classes, Rng(0))
        assert make(target=9).target_rule(10, Rng(0)) == AllToOne(9)

    def test_the_seed_draws_the_target(self, make: MakeAttack) -> None:
        """The same seed draws the same; ten seeds do not all draw the same."""
        rules = [make().target_rule(10, Rng(seed)) for seed in range(10)]
        assert rules == [make().target_rule(10, Rng(seed)) for seed in range(10)]
        assert len({rule.target for rule in rules}) > 1


class DrawnContract(_Made):
    """What an attack promises whose trigger comes from a seed alone."""

    def test_the_seed_draws_the_trigger(self, make: MakeAttack, images: LabelledImages) -> None:
        """The same seed draws the same; ten seeds differ, if anything is drawn."""
        shown = images.floats()
        pictures = set()
        for seed in range(10):
            backdoor, again = (
                make().backdoor(images.shape, images.num_classes, Rng(seed)) for _ in range(2)
            )
            picture = backdoor.trigger(shown)
            assert backdoor.rule == again.rule
            assert torch.equal(picture, again.trigger(shown))
            pictures.add(picture.numpy().tobytes())
        drawn = make().DRAWN
        assert (len(pictures) > 1) == (drawn is None or set(drawn) != {"target"})


class DirtyLabelContract(_Made):
    """What an attack promises that relabels images of every class."""

    @pytest.mark.parametrize("ratio", [0.01, 0.03, 0.1, 1.0])
    def test_the_ratio_is_kept_exactly(
        self, make: MakeAttack, images: LabelledImages, ratio: float
    ) -> None:
        """``round(ratio · N)`` images get the trigger and the label; the others stay."""
        attack: DirtyLabel = make(poison_ratio=ratio)
        backdoor = Backdoor(_Inverse(), attack.target_rule(images.num_classes, Rng(4)))
        index = attack.poison_index(images, backdoor.rule, Rng(4))
        assert len(index) == round(ratio * len(images))
        assert torch.equal(index, attack.poison_index(images, backdoor.rule, Rng(4)))
        before = images.fingerprint()
        poisoned = poison(images, index, backdoor)
        assert images.fingerprint() == before

        rest = torch.ones(len(images), dtype=torch.bool)
        rest[index] = False
        assert poisoned.images.dtype == torch.uint8
        assert torch.equal(poisoned.images[rest], images.images[rest])
        assert torch.equal(poisoned.labels[rest], images.labels[rest])
        assert torch.equal(poisoned.labels[index], backdoor.rule.wanted(images.labels[index]))
        trigger = backdoor.train_trigger or backdoor.trigger
        expected = round_to_8_bits(trigger(as_floats(images.images[index])))
        assert torch.equal(as_floats(poisoned.images[index]), expected)

    def test_a_ratio_that_gives_no_image_is_refused(
        self, make: MakeAttack, images: LabelledImages
    ) -> None:
        """A victim without poison would pass for a failed attack."""
        with pytest.raises(SpecError, match=r"a poison ratio that gives 1 to 120 of 120 images"):
            make(poison_ratio=1e-4).poison_index(images, AllToOne(0), Rng(0))

    def test_the_target_class_can_be_left_out(
        self, make: MakeAttack, images: LabelledImages
    ) -> None:
        """With ``exclude_target`` no image of the target class is poisoned; else some may be."""
        attack: DirtyLabel = make(target=3, poison_ratio=0.5, exclude_target=True)
        rule = attack.target_rule(images.num_classes, Rng(0))
        index = attack.poison_index(images, rule, Rng(0))
        assert len(index) == 60
        assert 3 not in images.labels[index].tolist()
        all_classes = make(target=3, poison_ratio=0.5).poison_index(images, rule, Rng(0))
        assert 3 in images.labels[all_classes].tolist()
        with pytest.raises(SpecError, match="a poison ratio that gives 1 to 108 of 120 images"):
            make(target=3, poison_ratio=1.0, exclude_target=True).poison_index(images, rule, Rng(0))

    def test_all_to_all(self, make: MakeAttack, images: LabelledImages) -> None:
        """Class y becomes y + 1, the last class 0."""
        attack: DirtyLabel = make(rule="all-to-all", poison_ratio=1.0)
        backdoor = Backdoor(_Inverse(), attack.target_rule(images.num_classes, Rng(0)))
        assert backdoor.rule == AllToAll(10)
        poisoned = poison(images, torch.arange(len(images)), backdoor)
        assert torch.equal(poisoned.labels, (images.labels + 1) % 10)


class CleanLabelContract(_Made):
    """What an attack promises that poisons the target class alone and leaves labels as they are."""

    @pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
    def test_only_the_target_class_is_poisoned(
        self, make: MakeAttack, images: LabelledImages, ratio: float
    ) -> None:
        """``round(ratio · n)`` of its n images, whose labels stay."""
        attack: CleanLabel = make(target=3, poison_ratio=ratio)
        rule = attack.target_rule(images.num_classes, Rng(0))
        index = attack.poison_index(images, rule, Rng(0))
        of_target = int((images.labels == 3).sum())
        assert len(index) == round(ratio * of_target)
        assert set(images.labels[index].tolist()) == {3}
        poisoned = poison(images, index, Backdoor(_Inverse(), rule))
        assert torch.equal(poisoned.labels, images.labels)

    def test_a_ratio_that_gives_no_image_is_refused(
        self, make: MakeAttack, images: LabelledImages
    ) -> None:
        """The ratio is of the target class, and the message says so."""
        with pytest.raises(SpecError, match=r"of the 1\d images of class 3, got 0\.001,"):
            make(poison_ratio=1e-3).poison_index(images, AllToOne(3), Rng(0))


class _Inverse:
    """A trigger like no other: the negative."""

    def __call__(self, images: Images, /) -> Images:
        return 1 - images


def _is_equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)

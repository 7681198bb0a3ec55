"""Checkouts of the peers' code: imported from where they lie, their side effects kept quiet.

Nothing of them is in this repository (BackdoorBench is CC BY-NC). What they need beside torch is
what their modules import: pandas, opencv (cv2), pyyaml, tqdm, matplotlib.

BackdoorBench and its fork call their packages the same, utils, defense and models: each has its own
under these names while it is imported and while its duels run, imports inside functions included.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from excise.types import LabelledImages


class Peer:
    """A checkout of BackdoorBench, imported from where it lies.

    Its modules stand under their names inside ``here()`` alone.

    Args:
        root: the checkout.

    Raises:
        InputError: no checkout is there, or something its modules import is not installed.
    """

    MODULES: tuple[str, ...] = (
        "clp", "bnp", "anp", "rnp", "ft", "ft-sam", "i-bau", "nad", "fp", "sau", "npd", "nc", "mcr",
    )  # fmt: skip
    NAME, OPTION = "BackdoorBench", "--backdoorbench"
    #: What a method's own file of settings may be called.
    SETTINGS: tuple[str, ...] = ("config.yaml",)
    #: Packages that every such checkout has.
    PACKAGES: tuple[str, ...] = ("defense", "models", "utils")

    def __init__(self, root: Path) -> None:
        from excise.errors import InputError

        for name in self.MODULES:
            if not (root / "defense" / f"{name}.py").is_file():
                raise InputError(
                    f"a checkout of {self.NAME}",
                    got=f"{root} without defense/{name}.py",
                    remedy=f"Give its path: {self.OPTION} PATH.",
                )
        self.root = root
        self._modules: dict[str, ModuleType] = {}
        os.environ.setdefault("MPLBACKEND", "Agg")
        with self.here():
            self.defense = {
                name: self.load(root / "defense" / f"{name}.py") for name in self.MODULES
            }
            self.datasets: Any = importlib.import_module("utils.bd_dataset_v2")
            self.transforms = importlib.import_module(
                "utils.aggregate_block.dataset_and_transform_generate"
            )

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Let the names of its packages mean this checkout's inside the block; not to be nested."""
        others, path, folder = self._taken(), sys.path[:], Path.cwd()
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.root))
        try:
            yield
        finally:
            self._modules = self._taken()
            sys.modules.update(others)
            # Its modules add to the path and change directory when imported.
            sys.path[:] = path
            os.chdir(folder)

    def _taken(self) -> dict[str, ModuleType]:
        """Return what is imported under the names of its packages, and forget it."""
        names = [name for name in sys.modules if name.partition(".")[0] in self.PACKAGES]
        return {name: sys.modules.pop(name) for name in names}

    def load(self, path: Path) -> ModuleType:
        from excise.errors import InputError

        try:
            with quiet():
                if path.stem == "bnp":  # it asks for its networks by a name they no longer have
                    networks = importlib.import_module("utils.defense_utils.mbns")
                    sys.modules["defense.mbns"] = networks
                # Some names have a hyphen: no import statement can say them.
                spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
        except ImportError as error:
            own = str(error.name).partition(".")[0] in self.PACKAGES
            raise InputError(
                f"a whole checkout of {self.NAME}"
                if own
                else "what the peer imports to be installed (pandas, opencv, pyyaml, tqdm)",
                got=f"“{error}” from {path.name}",
                remedy="Check it out anew." if own else "Install it beside Excise.",
            ) from None
        return module

    def args(self, name: str, **changes: Any) -> SimpleNamespace:
        """Return the arguments of a method: its own file of settings, on a CPU, as changed."""
        import yaml  # type: ignore[import-untyped]

        from excise.errors import InputError

        files = [self.root / "config" / "defense" / name / file for file in self.SETTINGS]
        settings = next((file for file in files if file.is_file()), None)
        if settings is None:
            raise InputError(
                f"a whole checkout of {self.NAME}",
                got=f"one without {files[0].relative_to(self.root)}",
                remedy="Check it out anew.",
            )
        plain = {
            "device": "cpu", "amp": False, "pin_memory": False, "non_blocking": False,
            "prefetch": False, "num_workers": 0, "frequency_save": 0, "num_classes": 10,
            "input_height": 32, "input_width": 32, "input_channel": 3, "ratio": 1.0,
        }  # fmt: skip
        return SimpleNamespace(**{**yaml.safe_load(settings.read_text()), **plain, **changes})

    def pictures(self, images: LabelledImages) -> Any:
        """Return the images as the peer keeps them: pictures with their labels."""
        from torchvision.transforms.functional import to_pil_image

        drawn = [to_pil_image(image) for image in images.floats()]
        return self.datasets.xy_iter(drawn, images.labels.tolist(), None)

    def dataset(self, images: LabelledImages, *, augment: bool) -> Any:
        """Return the peer's own data set, with its transforms of training or of test images."""
        return self.datasets.dataset_wrapper_with_transform(
            self.datasets.prepro_cls_DatasetBD_v2(self.pictures(images)),
            self.transforms.get_transform("cifar10", 32, 32, train=augment),
        )

    def stored(self, images: LabelledImages) -> Any:
        """Return images as a stored attack has them, for the peer to draw from and wrap."""
        return self.datasets.dataset_wrapper_with_transform(
            self.pictures(images), self.transforms.get_transform("cifar10", 32, 32, train=True)
        )

    def loader(self, images: LabelledImages, batch: int, *, augment: bool, **sampling: Any) -> Any:
        """Return the loader the peer trains with: shuffled, unless told how to sample."""
        from torch.utils.data import DataLoader

        data = self.dataset(images, augment=augment)
        return DataLoader(data, batch, num_workers=0, **(sampling or {"shuffle": True}))


class Fork(Peer):
    """A checkout of the fork of BackdoorBench that has methods the original has not."""

    MODULES = ("fst", "nft", "pbe", "fmp", "ims", "mm-bd", "awn", "btidbf-u")
    NAME, OPTION = "the fork of BackdoorBench", "--fork"
    SETTINGS = ("default.yaml", "cifar10.yaml")
    #: What BTI-DBF imports and the checkout has not; its duel puts ours in the places.
    MISSING: Mapping[str, tuple[str, ...]] = {
        "unet_model": ("UNet",),
        "model_wrapper": (
            "PreActResNetWrapper", "EfficientNetWrapper", "MobileNetV3Wrapper", "VGGWrapper",
        ),
    }  # fmt: skip

    def load(self, path: Path) -> ModuleType:
        if path.stem == "btidbf-u":
            for last, names in self.MISSING.items():
                empty = ModuleType(f"utils.defense.utils_btidbf.{last}")
                for name in names:
                    setattr(empty, name, nothing)
                sys.modules[empty.__name__] = empty
        return super().load(path)


def commit(root: Path | None) -> str | None:
    """Return the commit of a checkout; None where no repository of its own lies."""
    if root is None or not (root / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def grad_prune_of(root: Path, peer: Peer) -> ModuleType:
    """Return Grad-Prune's own module; it imports the peer's, as its overlay has them."""
    from excise.errors import InputError

    path = root / "grad-prune.py"
    if not path.is_file():
        raise InputError(
            "a checkout of Grad-Prune",
            got=f"{root} without grad-prune.py",
            remedy="Give its path: --grad-prune PATH.",
        )
    # Names it imports and a pruning round never uses: its overlay's drawing of samples, and the
    # making of triggers, which would ask for half a dozen packages more.
    peer.datasets.spc_choose_poisoned_sample = nothing
    triggers = ModuleType("utils.aggregate_block.bd_attack_generate")
    for name in ("bd_attack_img_trans_generate", "bd_attack_label_trans_generate"):
        setattr(triggers, name, nothing)
    with peer.here():
        sys.modules[triggers.__name__] = triggers
        return peer.load(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let the peer print, log and warn to nobody."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Give a module, or a class, other values of its names inside the block."""
    kept = {name: getattr(owner, name, None) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)


class Nothing:
    """Stands where the peer writes tables, plots or files: takes everything, does nothing."""

    def __init__(self, *args: Any, **keywords: Any) -> None: ...

    def __call__(self, *args: Any, **keywords: Any) -> Nothing:
        return self

    def __getattr__(self, name: str) -> Nothing:
        return self


def nothing(*args: Any, **keywords: Any) -> None:
    """Stand in for a function that saves, plots or prints."""


def with_norms(model: nn.Module, norm: Callable[[int], nn.Module]) -> nn.Module:
    """Return the network with the peer's batch norms in the places of its own, weights kept."""
    from torch import nn

    for name, old in list(model.named_modules()):
        if isinstance(old, nn.BatchNorm2d):
            new = norm(old.num_features)
            new.load_state_dict(old.state_dict(), strict=False)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, new)
    return model


def named(model: nn.Module, part: str) -> list[nn.Parameter]:
    """Return the parameters in whose names ``part`` stands."""
    return [value for name, value in model.named_parameters() if part in name]

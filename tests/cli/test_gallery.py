"""``excise gallery`` as a person meets it: what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from excise.attacks import Victim, load_victim, save_victim
from excise.cli import main
from excise.data import load_data, to_png
from excise.experiments.gallery import Exhibit, gallery
from excise.models import build_model
from excise.registry import rows
from excise.seeding import Rng
from excise.testing import Planted
from excise.types import LabelledImages


@pytest.fixture
def victim(planted: Planted, tmp_path: Path) -> Path:
    """The planted network as a bundle whose card says how it was made, but not what it measured."""
    out = tmp_path / "zoo" / "digits-badnets-0"
    made = {
        "attack": {"name": "badnets", "size": 2, "row": None},
        "recipe": {"epochs": 20},
        "seed": 0,
        "data": {"source": "digits", "victim_images": 0.5},
    }
    save_victim(out, Victim(planted.model, planted.backdoor, None), {"made": made})
    return out


def clean_bundle(planted: Planted, out: Path) -> Path:
    save_victim(out, Victim(planted.model, None, None), {})
    return out


def run(*arguments: object) -> int:
    return main(["gallery", *(str(argument) for argument in arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_the_page_of_a_directory(
    planted: Planted, victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo, page = victim.parent, tmp_path / "pages" / "gallery.html"
    clean_bundle(planted, zoo / "digits-none-0")
    card = json.loads((victim / "card.json").read_text())
    other = zoo / "digits-badnets-1"
    shutil.copytree(victim, other)
    card["made"]["attack"]["name"] = "blended"
    card["measured"] = {"visibility": {"mean_change": 3.25, "pixels_changed": 0.0625}}
    (other / "card.json").write_text(json.dumps(card))
    large = zoo / "signs-badnets-0"
    big = build_model("excise:preactresnet18,width=2", classes=10, in_channels=1,
                      input_size=(16, 16), mean=(0.5,), std=(0.5,), rng=Rng(0))  # fmt: skip
    save_victim(large, Victim(big, planted.backdoor, None), {})

    asked = [zoo, "--images", "digits", "--out", page, "--shown", 3, "--spectrum-images", 50]
    assert run(*asked) == 0
    captured = capsys.readouterr()
    assert captured.out == f"page: {page}\n"
    assert "left out signs-badnets-0" in captured.err
    html = page.read_text(encoding="utf-8")
    assert 'id="victim-1"' in html
    assert 'id="victim-2"' not in html
    assert "images of 1×16×16 and not 1×8×8" in html
    assert "3.25" in html
    assert "left open: row" in html
    for row in rows("attack"):
        if row.name not in ("none", "badnets", "blended"):
            assert f"<strong>{row.name}</strong>" in html, "what was not run is listed"
    assert "digits-none-0" not in html

    assert "an output file that does not exist yet" in refused(capsys, *asked)
    assert run(*asked, "--overwrite") == 0


def test_the_record_is_what_was_measured(victim: Path) -> None:
    loaded, card = load_victim(victim)
    test = load_data("digits").test
    assert test is not None
    record, files = gallery([Exhibit("it", loaded, card)], test, "digits", spectrum_images=100)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    again, same = gallery([Exhibit("it", loaded, card)], test, "digits", spectrum_images=100)
    assert (again | {"created": 0}, same) == (record | {"created": 0}, files)
    labels = [image["label"] for image in record["images"]]
    assert len(set(labels)) == 4
    [entry] = record["entries"]
    assert {answer["wanted"] for answer in entry["answers"]} == {"3"}
    assert sum(answer["triggered"] == "3" for answer in entry["answers"]) >= 3
    named = {*entry["triggered"], *entry["residual"], *(i["clean"] for i in record["images"])}
    assert named == set(files)
    other, _ = gallery([Exhibit("it", loaded, card)], test, "digits", seed=1, spectrum_images=10)
    assert other["images"] != record["images"] or other["entries"] != record["entries"]


def test_residuals_are_enlarged_around_gray(planted: Planted) -> None:
    import io

    import numpy as np
    from PIL import Image

    from excise.types import Backdoor, Images

    def faint(images: Images) -> Images:
        images = images.clone()
        images[..., 0, 0] += 5 / 255
        images[..., 7, 7] -= 5 / 255
        return images

    gray = torch.full((10, 1, 8, 8), 100, dtype=torch.uint8)
    test = LabelledImages(gray, torch.arange(10), tuple("0123456789"))
    shown = Victim(planted.network(), Backdoor(faint, planted.backdoor.rule), None)
    record, files = gallery([Exhibit("it", shown, {})], test, "gray", spectrum_images=10)
    [entry] = record["entries"]
    # Up to 127 steps fit between gray and white: 16 · 5 does, 32 · 5 does not.
    assert entry["residual_factor"] == 16
    pixels = np.asarray(Image.open(io.BytesIO(files["0/0-residual.png"]))).astype(int)
    assert pixels[0, 0] - 128 == pytest.approx(80, abs=1)
    assert pixels[7, 7] - 128 == pytest.approx(-80, abs=1)
    assert (abs(np.delete(pixels.ravel(), [0, 63]) - 128) <= 1).all()
    # By hand: constant 100 on 8 × 8 pixels has DC 800 and nothing else.
    spectrum = torch.tensor(record["spectrum"]["clean"])
    assert 10 ** spectrum[0, 0] - 1 == pytest.approx(800, rel=2e-3)
    assert spectrum.flatten()[1:].abs().max() < 1e-3
    assert entry["attack"] == "unknown"


def test_large_images_have_small_spectra(planted: Planted) -> None:
    pixels = torch.randint(0, 256, (4, 1, 224, 224), dtype=torch.uint8)
    test = LabelledImages(pixels, torch.tensor([0, 1, 2, 3]), tuple("0123456789"))
    shown = Victim(planted.network(), planted.backdoor, None)
    record, _ = gallery([Exhibit("it", shown, {})], test, "noise")
    assert {len(row) for row in record["spectrum"]["clean"]} == {64}
    assert len(record["entries"][0]["spectra"]["residual"]) == 64


def test_bad_input(
    planted: Planted, victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "gallery.html"
    usual = ["--images", "digits", "--out", page]
    (tmp_path / "empty").mkdir()
    twin = clean_bundle(planted, tmp_path / "twin")
    damaged = tmp_path / "damaged"
    shutil.copytree(victim, damaged)
    (damaged / "trigger.json").write_text("{")
    lying = tmp_path / "lying"
    shutil.copytree(victim, lying)
    card = json.loads((lying / "card.json").read_text())
    (lying / "card.json").write_text(json.dumps(card | {"measured": {"asr": "<b>much</b>"}}))
    few = tmp_path / "few" / "zebra"
    few.mkdir(parents=True)
    (few / "0.png").write_bytes(to_png(torch.zeros(1, 8, 8)))
    for arguments, message in (
        ([*usual], "at least one victim"),
        ([tmp_path / "nowhere", *usual], "which does not exist"),
        ([victim / "card.json", *usual], "a victim's bundle, or a directory of bundles"),
        ([tmp_path / "empty", *usual], "at least one victim, a bundle with a trigger"),
        ([twin, *usual], "twin, a clean network"),
        ([damaged, *usual], "trigger.json"),
        ([lying, *usual], "at entries.0.asr"),
        ([victim, "--images", "digits", "--out", tmp_path / "page.pdf"], "ends in .html"),
        ([victim, "--images", "digits", "--out", victim / "card.json" / "g.html"], "a file"),
        ([victim, "--images", "no/such/place", "--out", page], "no/such/place"),
        ([victim, "--images", tmp_path / "few", "--out", page], "zebra"),
        ([victim, *usual, "--shown", 0], "--shown from 1 to 8"),
        ([victim, *usual, "--spectrum-images", 0], "--spectrum-images from 1"),
        ([victim, *usual, "--device", "abacus"], "abacus"),
        ([victim, *usual, "--shwon", 3], "--shown"),
        ([victim, "--out", page], "--images"),
    ):
        assert message in refused(capsys, *arguments), arguments
        assert not page.exists()


def test_victims_of_other_images_are_refused_when_named(
    planted: Planted, victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "letters"
    names = build_model("excise:preactresnet18,width=2", classes=tuple("abc"), in_channels=1,
                        input_size=(8, 8), mean=(0.5,), std=(0.5,), rng=Rng(0))  # fmt: skip
    save_victim(other, Victim(names, planted.backdoor, None), {})
    said = refused(capsys, victim, other, "--images", "digits", "--out", tmp_path / "g.html")
    assert "letters: 3 classes that are not the other's 10" in said
    assert "one gallery for each data set" in said

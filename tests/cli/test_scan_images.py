"""``excise scan-images``: what it writes, what it refuses, its exit status."""

import json

import pytest
import torch
from PIL import Image

from excise.cli import main
from excise.data import load_data, to_png

QUICK = ["--preset", "fast", "--clean-images", 400, "--regenerations", 4, "--batch-size", 32]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def write(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (folder / f"{i:03}.png").write_bytes(to_png(image))


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def done(tmp_path_factory, digits):
    """A scan of 40 clean digits and 20 with a checkerboard, one file damaged."""
    home = tmp_path_factory.mktemp("scan")
    write(home / "clean", digits.train.images[:400])
    write(home / "source", digits.test.images[:40])
    patched = digits.test.images[40:60].clone()
    patched[:, :, :3, :3] = 255 * (torch.arange(9).reshape(3, 3) % 2 == 0).byte()
    write(home / "source" / "patched <b>", patched)
    (home / "source" / "[").mkdir()  # with what lies in it: a word of the terminal's markup
    (home / "source" / "[" / "] broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    status = run("scan-images", home / "source", "--clean", home / "clean",
                 "--out", home / "out", *QUICK)  # fmt: skip
    return home, status


def record_of(home):
    return json.loads((home / "out" / "record.json").read_text())


def test_it_writes_record_page_pictures_and_detector(done):
    home, status = done
    record = record_of(home)
    assert {p.name for p in (home / "out").iterdir()} == {
        "record.json", "report.html", "pictures", "detector"
    }  # fmt: skip
    assert len(record["images"]) == 60
    assert record["images"][0]["name"] == "000.png"
    assert record["images"][-1]["name"] == "patched <b>/019.png"
    assert record["unreadable"] == ["[/] broken.png"]
    assert record["clean"] == {"learned_from": 320, "held_back": 80}
    assert record["false_alarms"]["n"] == 80
    assert status == (1 if record["flagged"]["count"] else 0)
    found = sum(i["flagged"] for i in record["images"] if i["name"].startswith("patched"))
    assert found >= 15, "a checkerboard is seen"
    for shown in record["shown"]:
        assert all((home / "out" / shown[part]).is_file() for part in ("picture", "spectrum"))
    assert str(home) not in json.dumps({**record, "command": ""}), "a record names no path"
    assert record["spec"]["source"] == "source"
    page = (home / "out" / "report.html").read_text()
    assert "patched &lt;b&gt;/0" in page
    assert "<b>/0" not in page
    assert not list(home.glob(".*")), "nothing half-written is left"


def test_a_fitted_detector_is_used_again(done, capsys):
    home, _ = done
    first = record_of(home)
    capsys.readouterr()
    status = run("scan-images", home / "source", "--clean", home / "clean", "--out",
                 home / "again", "--detector", home / "out" / "detector", "--json")  # fmt: skip
    again = json.loads(capsys.readouterr().out)
    assert again["images"] == first["images"]
    assert again["false_alarms"] == first["false_alarms"]
    assert again["spec"]["detector"] == first["spec"]["detector"]
    assert "fit" not in again["seconds"]
    assert not any("fitted before" in note for note in again["notes"])
    assert status == (1 if again["flagged"]["count"] else 0)
    run("scan-images", home / "source", "--clean", home / "clean", "--out", home / "other",
        "--detector", home / "out" / "detector", "--json", "--seed", 1)  # fmt: skip
    assert any("fitted before" in note for note in json.loads(capsys.readouterr().out)["notes"])


def test_a_data_set_is_a_source_too(done, capsys):
    home, _ = done
    run("scan-images", "digits", "--clean", "digits", "--out", home / "digits",
        "--detector", home / "out" / "detector", "--json")  # fmt: skip
    record = json.loads(capsys.readouterr().out)
    assert len(record["images"]) == 535
    assert record["images"][3]["name"] == "test image 3"
    assert record["clean"] == {"learned_from": 1010, "held_back": 252}


def test_exit_status_0_where_nothing_is_flagged(done, capsys):
    home, _ = done
    calm = [i["name"] for i in record_of(home)["images"] if not i["flagged"]][:5]
    assert calm
    for name in calm:
        write_to = home / "calm" / name.replace("/", "-")
        write_to.parent.mkdir(exist_ok=True)
        write_to.write_bytes((home / "source" / name).read_bytes())
    assert run("scan-images", home / "calm", "--clean", home / "clean", "--out", home / "calm-out",
               "--detector", home / "out" / "detector") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "None of 5 pictures is flagged" in said
    assert "Not seen: most smooth triggers" in said


def complaint(capsys, *arguments):
    capsys.readouterr()
    assert run("scan-images", *arguments) == 2
    return capsys.readouterr().err


def test_bad_input_is_explained(done, tmp_path, capsys):
    home, _ = done
    clean, out = home / "clean", tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    said = complaint(capsys, empty, "--clean", clean, "--out", out, *QUICK)
    assert "pictures in" in said
    assert "got none" in said
    said = complaint(capsys, clean, "--clean", empty, "--out", out, *QUICK)
    assert "got none" in said
    (empty / "x.png").write_bytes(b"rubbish")
    said = complaint(capsys, empty, "--clean", clean, "--out", out, *QUICK)
    assert "1 that cannot be read: x.png" in said
    said = complaint(capsys, clean, "--clean", "cifra10", "--out", out, *QUICK)
    assert "Did you mean 'cifar10'?" in said
    said = complaint(capsys, tmp_path / "nowhere", "--clean", clean, "--out", out, *QUICK)
    assert "nowhere" in said
    said = complaint(capsys, "~nosuch-user/x", "--clean", clean, "--out", out, *QUICK)
    assert "a user nobody knows here" in said
    few = tmp_path / "few"
    write(few, torch.zeros(5, 1, 8, 8))
    said = complaint(capsys, clean, "--clean", few, "--out", out, *QUICK)
    assert "at least 10 clean pictures, better some hundreds, got 5" in said
    large = tmp_path / "large"
    write(large, torch.zeros(3, 1, 16, 16))
    said = complaint(capsys, large, "--clean", clean, "--out", out, *QUICK)
    assert "pictures of 8 × 8 pixels, like the clean ones, got 16 × 16" in said
    assert "--image-size" in said
    Image.new("L", (9, 9)).save(large / "z.png")
    said = complaint(capsys, large, "--clean", clean, "--out", out, *QUICK)
    assert "pictures of one size" in said
    assert "Give --image-size N" in said
    tiny = tmp_path / "tiny"
    write(tiny, torch.zeros(20, 1, 5, 5))
    said = complaint(capsys, tiny, "--clean", tiny, "--out", out, *QUICK)
    assert "at least 8 × 8 pixels, got 5 × 5" in said
    said = complaint(capsys, clean, "--clean", clean, "--out", out, "--preset", "fsat")
    assert "Did you mean 'fast'?" in said
    said = complaint(capsys, clean, "--clean", clean, "--out", out, "--held-back", 1)
    assert "--held-back between 0 and 1" in said
    said = complaint(capsys, clean, "--clean", clean, "--out", out, "--detector", tmp_path)
    assert "no detector.json" in said
    said = complaint(capsys, clean, "--clean", clean, "--out", home / "out")
    assert "does not exist yet" in said
    assert not out.exists(), "nothing is left"

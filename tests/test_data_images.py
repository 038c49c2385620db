"""A stranger's folder of images: found once, split for ever, every fault in one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qvae.data.images import Images
from qvae.errors import DataError, UsageError
from qvae.types import Condition

RNG = np.random.default_rng(0)


def picture(value: int, side: int = 4) -> Image.Image:
    """A grey picture that tells which one it is."""
    return Image.fromarray(np.full((side, side), value, np.uint8))


def folder_of(path: Path, names: list[str], **options) -> Path:
    for value, name in enumerate(names):
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        picture(value, **options).save(target)
    return path


@pytest.fixture
def clocks(tmp_path):
    """40 images with a metadata.csv of times, labels and numbers."""
    folder_of(tmp_path, [f"{row:02}.png" for row in range(40)])
    rows = [f"{row:02}.png,{row % 24}:{row:02},{'ab'[row % 2]},{row}" for row in range(40)]
    text = "\n".join(["file_name,time,label,age", *rows])
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8-sig")
    return tmp_path


def everything(data: Images) -> list[tuple[str, int, list[float]]]:
    """Name, grey value and conditions of every sample, in the order of the names."""
    found = []
    for split in (data.train(), data.valid(), data.test()):
        batch = split.batch(np.arange(len(split)))
        names = split.names or [""] * len(split)
        cond = batch.cond if batch.cond is not None else torch.zeros(len(split), 0)
        values = (batch.x[:, 0, 0, 0] * 255).round().int().tolist()
        found += list(zip(names, values, cond.tolist(), strict=True))
    return sorted(found)


def test_metadata_goes_with_its_image(clocks):
    data = Images(clocks, cond="time:cyclic(12h);label;age")
    assert [c.kind for c in data.spec.conditions] == ["cyclic", "category", "number"]
    age = data.spec.conditions[2]
    found = everything(data)
    assert [name for name, _, _ in found] == [f"{row:02}.png" for row in range(40)]
    for row, (_, value, cond) in enumerate(found):
        assert value == row
        expected = [(row % 24 + row / 60) % 12, row % 2, (row - age.mean) / age.std]
        assert cond == pytest.approx(expected, abs=1e-5)


def test_order_of_metadata_and_listing_do_not_matter(clocks):
    before = everything(Images(clocks, cond="age:cyclic(100)"))
    lines = (clocks / "metadata.csv").read_text(encoding="utf-8-sig").split("\n")
    (clocks / "metadata.csv").write_text("\n".join([lines[0], *lines[:0:-1], ""]))
    assert everything(Images(clocks, cond="age:cyclic(100)")) == before


def test_without_cond_there_are_no_conditions(clocks):
    (clocks / "new.png").write_bytes((clocks / "00.png").read_bytes())
    data = Images(clocks)
    assert data.spec.conditions == () and data.train().batch(np.arange(2)).cond is None
    assert data.spec.levels == 256 and data.spec.shape == (1, 4, 4)
    with pytest.raises(DataError, match="1 images have no row.*'new.png'"):
        Images(clocks, cond="label")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,a\nnone.png,1", "names 'none.png', there is no such file"),
        ("file_name,a\n00.png,1\n./00.png,2", "names '00.png' twice"),
        ("file_name,a\n00.png,1,2", "line 2 has 3 cells, the header has 2"),
        ("file_name,a,a\n00.png,1,2", "two columns have the same name"),
        ("name,a\n00.png,1", "needs one of file_name, filename, file, path, image"),
        ("", "needs one of file_name"),
        ("file_name,a\n../00.png,1", "not a file inside"),
        ("file_name,a\n/etc/passwd,1", "not a file inside"),
        ("file_name,a\n,1", "not a file inside"),
        ('file_name,a\n"00.png,1', "cannot be read"),
        ("file_name,a\n00.png," + "x" * 200_000, "cannot be read"),
    ],
)
def test_metadata_that_does_not_fit(text: str, message: str, clocks):
    (clocks / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        Images(clocks)


@pytest.mark.parametrize("title", ["file_name", "filename", "file", "path", "image"])
def test_names_of_the_file_column(title: str, tmp_path):
    folder_of(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    rows = "".join(f"{row},{name}.png\n" for row, name in enumerate("abcd"))
    (tmp_path / "metadata.csv").write_text(f"n,{title}\n{rows}")
    data = Images(tmp_path, cond="n:cyclic(10)")
    assert [cond for _, _, cond in everything(data)] == [[0], [1], [2], [3]]


def test_missing_column_names_those_there_are(clocks):
    with pytest.raises(DataError, match="cond='tim': .*did you mean 'time'.*time, label, age"):
        Images(clocks, cond="tim:cyclic(12h)")


def test_an_impossible_time_is_named_with_its_rule(clocks):
    text = (clocks / "metadata.csv").read_text(encoding="utf-8-sig").replace("7:07", "25:61")
    (clocks / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match="time='25:61' in 07.png: hours go from 0 to 23"):
        Images(clocks, cond="time:cyclic(12h)")


def test_split_column_is_obeyed(clocks):
    lines = (clocks / "metadata.csv").read_text(encoding="utf-8-sig").split("\n")
    parts = ["split"] + ["train"] * 20 + ["validation"] * 15 + ["test"] * 5
    text = "\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True))
    (clocks / "metadata.csv").write_text(text)
    data = Images(clocks)
    assert data.train().names == [f"{row:02}.png" for row in range(20)]
    assert data.test().names == [f"{row:02}.png" for row in range(35, 40)]
    (clocks / "metadata.csv").write_text(text.replace("validation", "holdout"))
    with pytest.raises(DataError, match="split='holdout' in 20.png"):
        Images(clocks)


def test_split_folders_and_class_folders(tmp_path):
    names = [f"{p}/{c}/{i}.png" for p in ("train", "val", "test") for c in "ab" for i in range(3)]
    data = Images(folder_of(tmp_path, names), cond="label")
    assert [len(s) for s in (data.train(), data.valid(), data.test())] == [6, 6, 6]
    assert data.spec.conditions[0].categories == ("a", "b")
    assert all(name.startswith("val/") for name in data.valid().names or [])
    flat = [f"{p}/{i}.png" for p in ("train", "test") for i in range(3)]
    with pytest.raises(DataError, match="cond='label': no such column in .*flat; there are: "):
        Images(folder_of(tmp_path / "flat", flat), cond="label")


def test_metadata_in_split_folders_is_read_beside_its_images(tmp_path):
    for part, value in (("train", 1), ("validation", 2), ("test", 3)):
        folder_of(tmp_path / part, ["a.png", "b.png"])
        (tmp_path / part / "metadata.csv").write_text(
            f"file_name,n\na.png,{value}\nb.png,{value + 5}\n"
        )
    data = Images(tmp_path, cond="n:cyclic(10)")
    assert [cond[0] for _, _, cond in everything(data)] == [3, 8, 1, 6, 2, 7]
    assert data.valid().names == ["validation/a.png", "validation/b.png"]
    assert data.test().names == ["test/a.png", "test/b.png"]


def damage(path: Path) -> dict[str, str]:
    """Spoil files of a folder in ten ways."""
    good = path / "00.png"
    kinds = {
        "bad0.png": b"",
        "bad1.jpg": b"hello",
        "bad2.png": good.read_bytes()[:40],
        "bad3.gif": b"GIF89a",
        "bad4.webp": b"RIFF\0\0\0\0WEBPVP8 ",
        "bad5.bmp": b"BM" + bytes(60),
        "bad6.tif": b"II*\0\x08\0\0\0",
        "bad7.png": good.read_bytes()[:-30],
        "bad8.jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
        "bad9.png": b"<html>",
    }
    for name, data in kinds.items():
        (path / name).write_bytes(data)
    return dict.fromkeys(kinds, "")


def test_bad_images_are_named_counted_and_tolerated_when_asked(tmp_path):
    folder_of(tmp_path, [f"{row:02}.png" for row in range(20)])
    bad = damage(tmp_path)
    with pytest.raises(DataError) as caught:
        Images(tmp_path, max_bad=9)
    message = str(caught.value)
    assert "10 of 30 images cannot be read, 9 may be: bad0.png (empty file); bad1.jpg" in message
    assert "--data.max_bad 10 leaves them out" in message and "\n" not in message
    data = Images(tmp_path, max_bad=10)
    assert [name for name, _ in data.bad] == sorted(bad) and all(r for _, r in data.bad)
    assert [value for _, value, _ in everything(data)] == list(range(20))


def test_only_bad_images_are_never_tolerated(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        Images(tmp_path, max_bad=5)


@pytest.mark.parametrize("max_bad", [0, 3])
def test_bad_images_keep_the_rows_of_the_others(max_bad: int, clocks):
    for name in ("05.png", "17.png", "39.png"):
        (clocks / name).write_bytes(b"")
    if not max_bad:
        with pytest.raises(DataError, match="3 of 40"):
            Images(clocks, cond="age:cyclic(100)")
        return
    found = everything(Images(clocks, cond="age:cyclic(100)", max_bad=max_bad))
    assert len(found) == 37 and all(value == cond[0] for _, value, cond in found)


def test_sizes(tmp_path):
    folder_of(tmp_path, ["a.png", "b.png", "c.png"])
    picture(9, side=5).save(tmp_path / "d.png")
    with pytest.raises(DataError, match=r"d.png is 5x5 but a.png is 4x4 .*--data.size"):
        Images(tmp_path)
    Image.new("L", (20000, 2), 50).save(tmp_path / "e.png")
    Image.new("L", (1, 1), 60).save(tmp_path / "f.png")
    data = Images(tmp_path, size=8)
    assert data.spec.shape == (1, 8, 8)
    assert [value for _, value, _ in everything(data)] == [0, 1, 2, 9, 50, 60]


def test_channels(tmp_path):
    folder_of(tmp_path, ["a.png", "b.png", "c.png"])
    assert Images(tmp_path).spec.shape[0] == 1
    Image.new("RGB", (4, 4), (0, 255, 0)).save(tmp_path / "d.png")
    data = Images(tmp_path)
    assert data.spec.shape == (3, 4, 4)
    colours = {
        tuple((x[:, 0, 0] * 255).round().int().tolist())
        for s in (data.train(), data.valid(), data.test())
        for x in s.batch(np.arange(len(s))).x
    }
    assert colours == {(0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 255, 0)}
    assert Images(tmp_path, channels=1).spec.shape[0] == 1


def test_arguments_are_checked(tmp_path):
    folder_of(tmp_path, ["a.png", "b.png", "c.png"])
    for wrong in ({"size": 0}, {"channels": 2}, {"max_bad": -1}, {"cond": "a:cyclic"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Images(tmp_path, **wrong)


def test_paths_with_nothing_to_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    folder_of(tmp_path / "one", ["a.png"])
    for name, message in [
        ("none", "no such file or folder"),
        ("empty", "holds no images"),
        ("notes.txt", "needs a folder, or a file"),
        ("one", "1 samples cannot be split"),
        ("one/a.png", "needs a folder, or a file"),
    ]:
        with pytest.raises(DataError, match=message):
            Images(tmp_path / name)


def test_read_and_write_are_inverse(tmp_path):
    for name, channels in (("grey", 1), ("rgb", 3)):
        x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(channels, 1)
        np.save(tmp_path / f"{name}.npy", np.concatenate([x] * 4))
        data = Images(tmp_path / f"{name}.npy")
        image = data.train().batch(np.array([0])).x[0]
        data.write(image, tmp_path / "out.png")
        assert torch.equal(data.read(tmp_path / "out.png"), image)
        data.write(image * 3 - 1, tmp_path / "clipped.png")
        assert data.read(tmp_path / "clipped.png").aminmax() == (0, 1)
    Image.new("RGBA", (40, 20)).save(tmp_path / "large.png")
    assert torch.equal(data.read(tmp_path / "large.png"), torch.ones(3, 16, 16))
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match="bad.png: empty file"):
        data.read(tmp_path / "bad.png")
    for wrong in (torch.full((1, 4, 4), torch.nan), torch.zeros(2, 4, 4)):
        with pytest.raises(ValueError, match="x: "):
            data.write(wrong, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_oblong_images_keep_their_shape(tmp_path):
    for row in range(3):
        Image.new("L", (6, 4), row).save(tmp_path / f"{row}.png")
    data = Images(tmp_path)
    assert data.spec.shape == (1, 4, 6)
    Image.new("L", (60, 60), 7).save(tmp_path / "other.png")
    assert data.read(tmp_path / "other.png").shape == (1, 4, 6)


def test_a_trained_models_conditions_replace_the_datas_own(clocks):
    data = Images(clocks, cond="label")
    model = (Condition(name="label", kind="category", categories=("z", "b", "a")),)
    data.use_conditions(model)
    assert data.spec.conditions == model
    assert {cond[0] for _, _, cond in everything(data)} == {1.0, 2.0}
    with pytest.raises(DataError, match="is not a category"):
        data.use_conditions([Condition(name="label", kind="category", categories=("a",))])
    assert data.spec.conditions == model

"""Trees of files: each found once, in one order, whatever its name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from qvae.data.folders import find_files
from qvae.data.images import Images
from qvae.errors import DataError


def folder_of(path: Path, names: list[str]) -> Path:
    for value, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(path / name)
    return path


def all_names(data: Images) -> list[str]:
    splits = (data.train(), data.valid(), data.test())
    return sorted(name for split in splits for name in split.names or [])


def strange_tree(path: Path) -> list[bytes]:
    """Hidden files, loops, links, and names that are not text."""
    folder_of(path, ["a.png", "ö/é.png", "sub/b.png", "sub/two\nlines.png", "x" * 200 + ".png"])
    folder_of(path, [".hidden.png", ".git/c.png"])
    (path / "sub" / "note.txt").write_text("no image")
    os.symlink(path, path / "sub" / "loop")
    for name in ("aa", "bb", "yy", "zz", "ö/aa", "ö/zz"):
        os.symlink(path / "sub", path / name)  # wherever it is met, sub stays the name
    os.symlink(path / "nowhere.png", path / "dangling.png")
    os.mkfifo(path / "pipe.png")
    outside = folder_of(path.parent / "outside", ["z.png"])
    os.symlink(outside, path / "linked")
    with open(os.fsencode(path) + b"/\xff\xfe.png", "wb") as file:
        file.write((path / "a.png").read_bytes())
    expected = [b"a.png", b"linked/z.png", b"sub/b.png", b"sub/two\nlines.png"]
    return [*expected, b"x" * 200 + b".png", "ö/é.png".encode(), b"\xff\xfe.png"]


def test_strange_trees_are_read_once_in_one_order(tmp_path):
    root = tmp_path / "root"
    expected = strange_tree(root)
    found = [os.fsencode(name) for name in find_files(root) if name.endswith(".png")]
    assert found == expected
    names = all_names(Images(root))
    assert "\\xff\\xfe.png" in names and "sub/two\\nlines.png" in names and len(names) == 7
    "".join(names).encode("utf-8")


CODE = """
import sys
from pathlib import Path
from qvae.data.folders import find_files, load_folder_images
from qvae.data.splits import split_rows
root = Path(sys.argv[1])
found = load_folder_images(root, find_files(root), size=None, channels=None, max_bad=0)
parts = {part: rows.tolist() for part, rows in split_rows(found.keys, found.told).items()}
print(ascii([found.names, found.keys, parts, found.columns]))
"""


def test_order_and_split_do_not_depend_on_the_locale(tmp_path):
    root = tmp_path / "root"
    strange_tree(root)
    (root / "ö" / "metadata.csv").write_text("file,n\né.png,5\n", encoding="utf-8")
    found = set()
    for locale in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {}):
        environment = {**os.environ, **locale}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        run = subprocess.run(
            [sys.executable, "-c", CODE, root], env=environment, capture_output=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1 and b"\\xf6/\\xe9.png" in found.pop()


def test_names_that_are_not_utf8_can_be_in_the_metadata(tmp_path):
    folder_of(tmp_path, ["a.png", "b.png"])
    os.rename(tmp_path / "b.png", os.fsencode(tmp_path) + b"/\xe9.png")
    folder_of(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_bytes(b"file,n\na.png,1\n\xe9.png,2\nb.png,3\n")
    data = Images(tmp_path, cond="n:number")
    assert len(all_names(data)) == 3
    # A category that is not UTF-8 must still fit into a model's JSON.
    (tmp_path / "metadata.csv").write_bytes(b"file,n\na.png,\xe9\n\xe9.png,\xe9\nb.png,\xe9\n")
    assert Images(tmp_path, cond="n").spec.conditions[0].categories == ("\\xe9",)


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (b"file_name;time\na.png;4:20\n", "file_name;time"),
        ("file_name,time\na.png,4:20\n".encode("utf-16"), r"\\xff\\xfef"),
        (b"", "nothing"),
    ],
)
def test_a_table_without_file_names_is_shown_its_first_line(tmp_path, table, found):
    folder_of(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "metadata.csv").write_bytes(table)
    with pytest.raises(
        DataError, match=f"no column with the file names.*its first line says {found}"
    ):
        Images(tmp_path)

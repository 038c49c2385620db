"""Images in Parquet files, as the Hugging Face Hub stores them."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvae.data.images import Images
from qvae.errors import DataError, QvaeError, UsageError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def parquet_of(path: Path, names: list[str], num: int = 4) -> None:
    value = 0
    for name in names:
        rows = []
        for _ in range(num):
            file = io.BytesIO()
            Image.new("L", (4, 4), value).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": None})
            value += 1
        labels = [row % 2 for row in range(num)]
        hours = [f"{row}:30" for row in range(num)]
        table = pa.table({"image": rows, "label": labels, "time": hours})
        feature = {
            "info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps(feature)})
        path.mkdir(exist_ok=True)
        parquet.write_table(table, path / name)


def test_parquet_as_on_the_hub(tmp_path):
    names = ["train-00000-of-00001.parquet", "validation-0.parquet", "test-0.parquet"]
    parquet_of(tmp_path / "data", names)
    data = Images(tmp_path, cond="label;time:cyclic(12h)")
    assert [len(s) for s in (data.train(), data.valid(), data.test())] == [4, 4, 4]
    assert data.spec.conditions[0].categories == ("cat", "dog")
    batch = data.train().batch(np.arange(4))
    assert (batch.x[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3]
    assert batch.cond.tolist() == [[0, 0.5], [1, 1.5], [0, 2.5], [1, 3.5]]
    one = Images(tmp_path / "data" / names[0], size=2)
    assert one.spec.shape == (1, 2, 2)


def test_parquet_that_is_damaged_or_has_no_images(tmp_path):
    parquet_of(tmp_path, ["a.parquet"])
    good = (tmp_path / "a.parquet").read_bytes()
    rng = np.random.default_rng(0)
    for data in (b"", b"PAR1", good[: len(good) // 2]):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(DataError, match="a.parquet"):
            Images(tmp_path)
    for _ in range(40):
        data = bytearray(good)
        data[rng.integers(4, len(data))] ^= 1 << rng.integers(8)
        (tmp_path / "a.parquet").write_bytes(bytes(data))
        try:
            Images(tmp_path)
        except QvaeError:
            continue
    parquet.write_table(pa.table({"n": [1, 2, 3]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of encoded images .* among n"):
        Images(tmp_path)
    parquet.write_table(pa.table({"image": [b"x", None, b""]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"3 of 3 images cannot be read.*a.parquet:0 \(not one of"):
        Images(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"pip install qvae\[data\]"):
        Images(tmp_path / "a.parquet")

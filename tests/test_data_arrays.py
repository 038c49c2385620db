"""Arrays and IDX files: nothing is taken silently, nothing is unpickled."""

import gzip
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qvae.data.arrays import images_from_array, open_npy
from qvae.data.idx import read_idx
from qvae.data.images import Images
from qvae.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 6, 8), dtype=np.uint8)
RGB = RNG.integers(0, 256, (40, 6, 8, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def all_rows(data: Images) -> np.ndarray:
    """Every sample of the three splits, in the order of the file (they have no names)."""
    return np.concatenate(
        [s.batch(np.arange(len(s))).x.numpy() for s in (data.train(), data.valid(), data.test())]
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((9, 6, 8), (9, 1, 6, 8)),
        ((9, 6, 8, 1), (9, 1, 6, 8)),
        ((9, 6, 8, 3), (9, 3, 6, 8)),
        ((9, 3, 6, 8), (9, 3, 6, 8)),
        ((9, 1, 6, 8), (9, 1, 6, 8)),
        ((9, 3, 6, 3), (9, 3, 3, 6)),  # both could be: the last axis is taken
    ],
)
def test_layouts(shape: tuple, expected: tuple):
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    found = images_from_array(array, "a")
    assert found.shape == expected
    if len(shape) == 4 and shape[-1] in (1, 3):
        assert np.array_equal(np.moveaxis(found, 1, -1), array)


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.full((4, 6, 8), np.nan), "NaN or Inf"),
        (np.where(np.arange(192).reshape(4, 6, 8) == 9, np.nan, 0.5), "NaN or Inf"),
        (np.where(np.arange(192).reshape(4, 6, 8) == 9, np.inf, 0.5), "NaN or Inf"),
        (np.where(np.arange(192).reshape(4, 6, 8) == 9, -np.inf, 0.5), "NaN or Inf"),
        (np.full((4, 6, 8), 0.5), "every value is 0.5"),
        (np.zeros((4, 6, 8), np.uint8), "every value is 0"),
        (np.ones((4, 6, 8), bool), "every value is 1"),
        (np.linspace(0, 255, 192).reshape(4, 6, 8), r"from 0 to 255, floats need \[0, 1\]"),
        (np.linspace(-1, 1, 192).reshape(4, 6, 8), r"from -1 to 1, floats need \[0, 1\]"),
        (np.arange(192, dtype=np.uint16).reshape(4, 6, 8) * 300, "needs? 0..255|need 0..255"),
        (np.arange(192, dtype=np.int64).reshape(4, 6, 8) - 1, "from -1 to 190"),
        (np.arange(192, dtype=np.uint8).reshape(4, 6, 8) % 2, "0 and 1 only.*bool"),
        (np.zeros((4, 6, 8), np.complex64), "dtype complex64"),
        (np.full((4, 6, 8), "a"), "dtype <U1"),
        (np.zeros((4, 6, 8), "M8[s]"), "dtype datetime64"),
        (RNG.random((64, 64, 3)), "looks like one image"),
        (RNG.random((4, 6, 8, 4)), "no axis for the channels"),
        (RNG.random((4, 6)), r"shape \(4, 6\), needs"),
        (RNG.random((2, 3, 4, 5, 3)), "needs"),
        (np.zeros((0, 6, 8), np.uint8), "no axis empty"),
        (np.float64(3), r"shape \(\), needs"),
    ],
)
def test_arrays_that_break_a_rule_are_refused_with_it(array, rule: str, tmp_path):
    path = save(tmp_path / "x.npy", np.asarray(array))
    with pytest.raises(DataError, match=rule) as caught:
        Images(path)
    assert "x.npy" in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "levels"), [("uint8", 256), ("int64", 256), (">u2", 256), ("float32", None),
                          ("float16", None), (">f8", None), ("bool", 2)]
)  # fmt: skip
def test_types_and_levels(dtype: str, levels: int | None, tmp_path):
    kind = np.dtype(dtype).kind
    array = (GREY > 99 if kind == "b" else GREY / 255 if kind == "f" else GREY).astype(dtype)
    data = Images(save(tmp_path / "x.npy", array))
    assert data.spec.levels == levels and data.spec.shape == (1, 6, 8)
    expected = array.astype(np.float32) / (255 if kind in "iu" else 1)
    found = {x.tobytes() for x in all_rows(data)}
    assert found == {x.astype(np.float32).tobytes() for x in expected}


def test_size_and_channels_of_arrays(tmp_path):
    path = save(tmp_path / "x.npy", RGB)
    assert Images(path, size=4, channels=1).spec.shape == (1, 4, 4)
    assert Images(save(tmp_path / "g.npy", GREY), channels=3).spec.shape == (3, 6, 8)
    with pytest.raises(DataError, match="8-bit images only"):
        Images(save(tmp_path / "f.npy", GREY / 255), size=4)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    "array",
    [
        np.array([Bomb()], dtype=object),
        np.array([(1, 2)], dtype=[("a", "i4"), ("b", "i4")]),
    ],
)
def test_objects_and_records_are_refused_unopened(array, tmp_path):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match="Python objects or records"):
        Images(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", x=GREY, y=array, allow_pickle=True)
    with pytest.raises(DataError, match=r"x.npz\[y\].*Python objects or records"):
        Images(tmp_path / "x.npz")


def npy_header(text: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00" + bytes(99),
        b"\x93NUMPY\x01\x00\xff\xff" + bytes(99),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000)}"),
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -6, 8)}", bytes(192)),
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 6, 8)}", bytes(191)),
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 6, 8)}", bytes(193)),
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 6, 8)}", bytes(48)),
        npy_header("{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (4,)}"),
        npy_header("{" * 5000),
        npy_header("(" * 9000 + ")" * 9000),
        pickle.dumps(Bomb()),
    ],
)
def test_hostile_npy_files(data: bytes, tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(DataError, match="x.npy") as caught:
        open_npy(path)
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with pytest.raises(DataError, match="x.npz"):
        Images(tmp_path / "x.npz")


def test_fortran_order_and_big_files_stay_mapped(tmp_path):
    path = save(tmp_path / "x.npy", np.asfortranarray(GREY))
    assert isinstance(open_npy(path), np.memmap) and np.array_equal(open_npy(path), GREY)


def test_npz_columns_labels_and_split(tmp_path):
    split = np.array(["train"] * 30 + ["val"] * 4 + ["test"] * 6)
    hours = np.linspace(0, 11, 40)
    np.savez_compressed(tmp_path / "x.npz", images=GREY, y=np.arange(40) % 3, t=hours, split=split)
    data = Images(tmp_path / "x.npz", cond="label;t:cyclic(12h)")
    assert [len(s) for s in (data.train(), data.valid(), data.test())] == [30, 4, 6]
    assert data.spec.conditions[0].categories == ("0", "1", "2")
    batch = data.valid().batch(np.arange(4))
    assert np.allclose(batch.cond, np.stack([np.arange(30, 34) % 3, hours[30:34]], 1))
    assert np.array_equal(batch.x.numpy()[:, 0], GREY[30:34] / np.float32(255))


def test_npz_only_array_and_ambiguity(tmp_path):
    np.savez(tmp_path / "a.npz", whatever=GREY)
    assert Images(tmp_path / "a.npz").spec.shape == (1, 6, 8)
    np.savez(tmp_path / "b.npz", one=GREY, two=GREY)
    with pytest.raises(DataError, match="one, two; needs the images as 'x'"):
        Images(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=GREY, y=np.arange(39))
    with pytest.raises(DataError, match=r"c.npz\[y\]: shape \(39,\) for 40 images"):
        Images(tmp_path / "c.npz")


def test_npz_that_lies_or_is_damaged(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=GREY)
    good = (tmp_path / "x.npz").read_bytes()
    for cut in (10, len(good) // 2, len(good) - 5):
        (tmp_path / "x.npz").write_bytes(good[:cut])
        with pytest.raises(DataError, match="x.npz"):
            Images(tmp_path / "x.npz")
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(good)
        data[rng.integers(40, len(data))] ^= 1 << rng.integers(8)
        (tmp_path / "x.npz").write_bytes(bytes(data))
        try:
            found = all_rows(Images(tmp_path / "x.npz"))
        except DataError:
            continue  # damage in what the zip checksum does not cover, such as a time stamp, passes
        assert {x.tobytes() for x in found} == {
            (x / np.float32(255)).astype(np.float32).tobytes() for x in GREY
        }


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    train, test = RNG.integers(0, 256, (2, 300, 5, 7), dtype=np.uint8)
    labels = RNG.integers(0, 4, (2, 300), dtype=np.uint8)
    for name, x, y in (("train", train, labels[0]), ("t10k", test[:50], labels[1, :50])):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(y))
    return tmp_path, train, test, labels


def test_idx_folder_keeps_the_published_test_part(idx_folder):
    path, train, test, labels = idx_folder
    data = Images(path, cond="label")
    assert len(data.train()) + len(data.valid()) == 300 and len(data.test()) == 50
    assert 10 <= len(data.valid()) <= 45
    batch = data.test().batch(np.arange(50))
    assert np.array_equal((batch.x[:, 0] * 255).round().byte().numpy(), test[:50])
    assert np.array_equal(batch.cond[:, 0].numpy(), labels[1, :50])
    assert data.spec.conditions[0].categories == ("0", "1", "2", "3") and data.spec.levels == 256
    rows = {x.tobytes(): y for x, y in zip(train, labels[0], strict=True)}
    batch = data.train().batch(np.arange(len(data.train())))
    for x, y in zip((batch.x[:, 0] * 255).round().byte().numpy(), batch.cond[:, 0], strict=True):
        assert rows[x.tobytes()] == y


def test_one_idx_file(idx_folder):
    path = idx_folder[0]
    data = Images(path / "t10k-images-idx3-ubyte.gz", cond="label")
    assert sum(len(s) for s in (data.train(), data.valid(), data.test())) == 50
    (path / "more-images-idx3-ubyte").write_bytes(idx(GREY))
    with pytest.raises(DataError, match="needs one IDX file of training images"):
        Images(path)


def test_idx_labels_must_fit(idx_folder):
    path = idx_folder[0]
    (path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(49, np.uint8)))
    with pytest.raises(DataError, match=r"labels of shape \(49,\) for 50 images"):
        Images(path)
    (path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="cond='label': no such column in "):
        Images(path, cond="label")
    assert len(Images(path).test()) == 50


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        b"PK\3\4" + bytes(50),
        idx(GREY)[:-1],
        idx(GREY) + b"x",
        idx(GREY, kind=0x0D),
        idx(GREY)[:9],
        bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**32 - 1] * 3),
        bytes([0, 0, 8, 200]) + bytes(800),
    ],
)
def test_hostile_idx_files(data: bytes, tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    for content in (data, gzip.compress(data), gzip.compress(data)[:-4]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="train-images"):
            read_idx(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb") as stream:
        stream.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 6, 8))
        stream.write(bytes(30_000_000))
    path = tmp_path / "x-ubyte.gz"
    path.write_bytes(file.getvalue())
    with pytest.raises(DataError, match="there are more"):
        read_idx(path)

"""2-D shapes: the lattice of dSprites in its order, its pictures, and the original's file."""

import numpy as np
import pytest
import torch

from qvae.data.shapes2d import SHAPES, Shapes2D
from qvae.data.shapes2d_file import PackedPictures
from qvae.data.shapes2d_renderer import SIZES, ShapePictures, factor_values
from qvae.errors import DataError

NUM = 737_280


@pytest.fixture(scope="module")
def data():
    return Shapes2D()


def row(**classes):
    """The row of some classes; 0 for a factor that is not named."""
    names = Shapes2D.factor_names
    return int(np.ravel_multi_index([classes.get(name, 0) for name in names], SIZES))


def test_the_lattice_is_that_of_the_specification(data):
    assert len(data) == NUM == np.prod(SIZES)
    assert data.spec.shape == (1, 64, 64) and data.spec.levels == 2
    shape, scale, turn, x, y = factor_values()
    np.testing.assert_allclose(scale, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert len(turn) == 40 and turn[0] == 0 and turn[-1] == 2 * np.pi
    np.testing.assert_allclose(x, np.arange(32) / 31)
    # pos_y changes fastest, then pos_x, orientation, scale, shape
    assert data.classes(np.array([1, 32, 1024, 40960, 245760])).tolist() == [
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
    ]


def test_a_position_moves_the_same_sprite_by_whole_pixels(data):
    at = {"shape": 2, "scale": 5, "orientation": 3}
    rows = [row(**at), row(**at, pos_x=7), row(**at, pos_y=9)]
    first, right, down = data.pictures(np.array(rows))[:, 0]
    assert torch.equal(first.roll(7, dims=1), right)
    assert torch.equal(first.roll(9, dims=0), down)


def test_no_shape_is_cut_off_by_the_frame(data):
    corners = [
        row(shape=s, scale=5, orientation=o, pos_x=x, pos_y=y)
        for s in range(3)
        for o in range(40)
        for x in (0, 31)
        for y in (0, 31)
    ]
    pictures = data.pictures(np.array(corners))
    border = torch.cat([pictures[..., 0, :], pictures[..., -1, :], pictures[..., 0]], -1)
    assert pictures.sum(dim=(1, 2, 3)).min() > 200 and border.sum() == 0
    assert not pictures[..., -1].any()


def test_scale_is_a_length_and_the_shapes_are_alike_in_area(data):
    rows = [[row(shape=s, scale=k, orientation=5) for k in range(6)] for s in range(3)]
    areas = data.pictures(np.array(rows).ravel()).sum(dim=(1, 2, 3)).view(3, 6)
    assert torch.all((areas[:, 5] / 294 - 1).abs() < 0.02)
    assert torch.all((areas[:, 0] / areas[:, 5] - 0.25).abs() < 0.02)


def test_orientation_turns_a_shape_anticlockwise(data):
    """The second moments of the ellipse say which way its long axis points."""
    turns = np.arange(40)
    pictures = data.pictures(np.array([row(shape=1, scale=5, orientation=t) for t in turns]))
    weights = pictures[:, 0].double()
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    total = weights.sum((1, 2))
    cx, cy = (weights * x).sum((1, 2)) / total, (weights * y).sum((1, 2)) / total
    dx, dy = x - cx[:, None, None], -(y - cy[:, None, None])  # up is positive
    mxx, myy, mxy = ((weights * each).sum((1, 2)) for each in (dx * dx, dy * dy, dx * dy))
    angle = 0.5 * torch.atan2(2 * mxy, mxx - myy).numpy()
    error = np.mod(angle - factor_values()[2] + np.pi / 2, np.pi) - np.pi / 2
    assert np.abs(error).max() < 0.05


def test_pictures_differ_unless_a_turn_is_whole_or_nearly():
    sprites = ShapePictures()._view[:, :, :, 15, 15].reshape(720, -1)
    first, last = sprites.reshape(18, 40, -1)[:, 0], sprites.reshape(18, 40, -1)[:, 39]
    assert np.array_equal(first, last), "0 and 2 pi are the same orientation"
    distinct = len(np.unique(np.packbits(sprites, axis=1), axis=0))
    assert distinct > 690  # 702 could be; some squares turned by 2 degrees coincide


def test_parts_cover_the_whole_once_and_never_change(data):
    rows = [data._rows[name] for name in ("train", "valid", "test")]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(NUM))
    assert [len(part) for part in rows] == [662_753, 37_311, 37_216]
    assert rows[2][:3].tolist() == [12, 46, 48]
    split = data.valid()
    one, again = split.batch(np.array([5, 3])), split.batch(np.array([3]))
    assert torch.equal(one.x[1], again.x[0]) and torch.equal(one.cond[1], again.cond[0])


def test_conditions_mean_the_factors(data):
    rows = np.array([row(), row(shape=2, scale=5, orientation=20, pos_x=31, pos_y=31)])
    cond, values = data.conditions_of(rows), data.values(rows)
    for column, item in enumerate(data.spec.conditions):
        told = cond[:, column].numpy()
        if item.kind == "number":
            told = told * item.std + item.mean
        np.testing.assert_allclose(told, values[:, column], atol=1e-6)
    assert data.spec.conditions[0].categories == SHAPES


def test_columns_are_labels(data):
    labels = data.column("shape", "valid")
    assert len(labels) == len(data.valid()) and set(labels) == set(SHAPES)
    assert set(data.column("scale", "test")) == set("012345")
    with pytest.raises(DataError, match="no column 'colour' of labels in the data; its cond"):
        data.column("colour", "test")


def test_a_written_picture_reads_back(data, tmp_path):
    x = data.pictures(np.array([123_456]))[0]
    data.write(x, tmp_path / "a.png")
    assert torch.equal(data.read(tmp_path / "a.png"), x)


# -- the original's file -----------------------------------------------------------------------

SMALL = (3, 2, 4, 3, 5)


def small_file(path, *, change=None):
    """A file as the original is, of a smaller lattice."""
    num = int(np.prod(SMALL))
    pictures = np.random.default_rng(0).integers(0, 2, (num, 64, 64), dtype=np.uint8)
    classes = np.stack(np.unravel_index(np.arange(num), (1, *SMALL)), axis=1)
    arrays = {"imgs": pictures, "latents_classes": classes, "latents_values": classes * 0.5}
    if change is not None:
        change(arrays)
    np.savez_compressed(path, **arrays)
    return arrays


def test_the_originals_file_is_read_bit_by_bit(tmp_path):
    arrays = small_file(tmp_path / "d.npz")
    packed = PackedPictures(tmp_path / "d.npz", SMALL)
    rows = np.array([359, 0, 77])
    assert np.array_equal(packed.take(rows), arrays["imgs"][rows])


def no_pictures(arrays):
    del arrays["imgs"]


def grey(arrays):
    arrays["imgs"] = arrays["imgs"] * 255


def another_order(arrays):
    arrays["latents_classes"] = arrays["latents_classes"][::-1]


def too_few(arrays):
    arrays["imgs"] = arrays["imgs"][:-1]


def floats(arrays):
    arrays["imgs"] = arrays["imgs"].astype(np.float32)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (no_pictures, "holds latents_classes, latents_values; needs imgs"),
        (grey, "has the value 255, needs 0 and 1 only"),
        (another_order, "the last factor must change fastest"),
        (too_few, r"uint8 of shape \(359, 64, 64\), needs integers of \(360, 64, 64\)"),
        (floats, "float32 of shape"),
    ],
)
def test_another_file_is_refused_with_the_reason(tmp_path, change, sentence):
    small_file(tmp_path / "d.npz", change=change)
    with pytest.raises(DataError, match=sentence):
        PackedPictures(tmp_path / "d.npz", SMALL)


def test_broken_and_missing_files_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="nowhere.npz: cannot be read"):
        Shapes2D(path=tmp_path / "nowhere.npz")
    (tmp_path / "no.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match="not a sound .npz file"):
        Shapes2D(path=tmp_path / "no.npz")
    whole = tmp_path / "cut.npz"
    small_file(whole)
    with pytest.raises(DataError, match="latents_classes.: int64 of shape"):
        Shapes2D(path=whole)

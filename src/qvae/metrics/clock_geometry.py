"""Where a dial is in a picture: its centre and radius from concentric edges, in numpy.

Around the right centre every ring of a dial has one colour, so the mean colour of a ring jumps at
the rim; around a wrong centre the jumps smear out. The radial edges are therefore averaged over
all directions for every candidate centre at once, and the centre with the most energy left wins.
Moving the centre shifts each ray of a polar picture, and a shift is a phase in Fourier space:
one small matrix product a frequency scores all candidates.
"""

import functools

import numpy as np

__all__ = ["SIZE", "find_dials", "sample_bilinear"]

SIZE = 64  # height and width of a picture

_MIDDLE = (SIZE - 1) / 2
_RAYS = 72
_STEP = 0.5  # pixels between samples along a ray
_RADII = np.arange(15.0, 36.0, _STEP)  # every dial's rim and marks, wherever its centre is
_FREQUENCIES = np.arange(1, 13)  # down to a wavelength of 1.8 pixels
_OFFSETS = np.arange(-3.0, 3.01, 0.5)  # candidate centres, pixels from the middle
_RIM_RADII = np.arange(23.5, 31.9, 0.4)
_RIM_SHARE = 0.2  # the dial's outline: outermost jump of at least this share of the largest


def sample_bilinear(pictures: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate pictures at fractional pixels; outside, the nearest border pixel counts.

    Args:
        pictures: ``[N, 64, 64, 3]`` float32.
        x: ``[N, ...]`` columns, in pixels; pixel 0 has its centre at 0.
        y: ``[N, ...]`` rows.

    Returns:
        ``[N, ..., 3]`` float32.

    Example:
        >>> ramp = np.broadcast_to(np.arange(64.0)[:, None], (1, 64, 64, 3)).astype(np.float32)
        >>> sample_bilinear(ramp, np.array([[2.25]]), np.array([[7.0]]))[0, 0].tolist()
        [2.25, 2.25, 2.25]
    """
    x, y = np.clip(x, 0, SIZE - 1.001), np.clip(y, 0, SIZE - 1.001)
    left, top = x.astype(np.intp), y.astype(np.intp)
    right_share, low_share = (x - left).astype(np.float32), (y - top).astype(np.float32)
    clock = np.arange(len(pictures)).reshape(-1, *[1] * (x.ndim - 1))
    corner = (clock * SIZE + top) * SIZE + left
    sampled = np.empty((3, *x.shape), dtype=np.float32)
    # Channel by channel: arithmetic on a last axis of three is several times slower.
    for channel, upper in enumerate(sampled):
        pixels = pictures[..., channel].ravel()
        upper[...] = pixels[corner]
        upper += (pixels[corner + 1] - upper) * right_share
        lower = pixels[corner + SIZE]
        lower += (pixels[corner + SIZE + 1] - lower) * right_share
        lower -= upper
        lower *= low_share
        upper += lower
    return np.moveaxis(sampled, 0, -1)


@functools.cache
def _directions() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors x, y along the rays, clockwise from up: ``[72]`` each."""
    angle = np.arange(_RAYS) * (2 * np.pi / _RAYS)
    return np.sin(angle), -np.cos(angle)


@functools.cache
def _phases() -> np.ndarray:
    """Phases that move each ray to each candidate centre: ``[frequencies, 72, candidates]``."""
    ray_x, ray_y = (axis[:, None] for axis in _directions())
    x, y = (axis.reshape(1, -1) for axis in np.meshgrid(_OFFSETS, _OFFSETS, indexing="ij"))
    ahead = x * ray_x + y * ray_y
    aside = x * ray_y - y * ray_x
    shift = ahead - aside**2 / 55  # where a ray meets a circle of radius 25-30 around (x, y)
    period = len(_RADII) * _STEP
    return np.exp(2j * np.pi / period * _FREQUENCIES[:, None, None] * shift).astype(np.complex64)


def _radial_edges(pictures: np.ndarray) -> np.ndarray:
    """Spectra of the colour's slope along each ray: ``[frequencies, N * 3, 72]``."""
    x, y = (_MIDDLE + axis[:, None] * _RADII for axis in _directions())
    shape = (len(pictures), *x.shape)
    rays = sample_bilinear(pictures, np.broadcast_to(x, shape), np.broadcast_to(y, shape))
    slope = np.diff(rays, axis=2, append=rays[:, :, -1:])
    spectra = np.fft.rfft(slope, axis=2)[:, :, _FREQUENCIES]  # [N, 72, frequencies, 3]
    # Sharper edges tell more of the centre than soft shades, hence the mild weight.
    spectra = spectra.transpose(2, 0, 3, 1) * np.sqrt(_FREQUENCIES)[:, None, None, None]
    return spectra.astype(np.complex64).reshape(len(_FREQUENCIES), -1, _RAYS)


def find_dials(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the centre and the radius of one dial a picture.

    Args:
        pictures: ``[N, 64, 64, 3]`` float32; a dial of radius 24-31 within 3 pixels of the middle.

    Returns:
        Centres x, y ``[N, 2]`` and radii ``[N]`` in pixels, always finite and within those bounds;
        without a dial they mean nothing.
    """
    rings = _radial_edges(pictures) @ _phases()  # [frequencies, N * 3, candidates]
    rings = rings.reshape(len(_FREQUENCIES), len(pictures), 3, -1)
    energy = (rings.real**2 + rings.imag**2).sum(axis=(0, 2))  # [N, candidates]
    best = energy.argmax(axis=1)
    grid = energy.reshape(-1, len(_OFFSETS), len(_OFFSETS))
    row, column = np.unravel_index(best, grid.shape[1:])
    clock = np.arange(len(pictures))
    centre = _MIDDLE + np.stack(
        [_peak(grid[clock, :, column], row), _peak(grid[clock, row], column)], axis=1
    )
    return centre, _radius(pictures, centre)


def _peak(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Offset at the top of the parabola through the best score and its neighbours: ``[N]``."""
    inside = np.clip(best, 1, len(_OFFSETS) - 2)
    clock = np.arange(len(best))
    before, top, after = (scores[clock, inside + step] for step in (-1, 0, 1))
    bend = np.maximum(2 * top - before - after, 1e-12)
    move = np.clip((after - before) / (2 * bend), -1, 1)
    return _OFFSETS[inside] + _STEP * np.where(best == inside, move, best - inside)


def _radius(pictures: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Radius ``[N]`` of the outermost marked jump in the mean colour of rings."""
    x, y = (axis[:, None] for axis in _directions())
    rays = sample_bilinear(
        pictures,
        centre[:, 0, None, None] + x * _RIM_RADII,
        centre[:, 1, None, None] + y * _RIM_RADII,
    )
    slope = np.linalg.norm(np.diff(rays.mean(axis=1), axis=1), axis=2)  # [N, radii - 1]
    crest = np.zeros(slope.shape, dtype=bool)
    crest[:, 1:-1] = (slope[:, 1:-1] >= slope[:, :-2]) & (slope[:, 1:-1] > slope[:, 2:])
    crest &= slope >= _RIM_SHARE * slope.max(axis=1, keepdims=True)
    outermost = crest.shape[1] - 1 - crest[:, ::-1].argmax(axis=1)
    found = (_RIM_RADII[outermost] + _RIM_RADII[outermost + 1]) / 2
    return np.where(crest.any(axis=1), found, _RIM_RADII.mean())

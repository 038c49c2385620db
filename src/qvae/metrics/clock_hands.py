"""Where the hands of a dial point: ink around two rings, in numpy.

In the ring .50-.67 R of a dial of radius R the minute hand alone has ink: the face's colour is the
median there, and the hand is the peak of what differs, refined to the ink's centroid. In the ring
.19-.33 R there are the minute hand, known by now, and the hour hand. The profile measured across
the minute hand is subtracted from it, and a second hand is fitted to the rest by least squares.
"""

import dataclasses
import functools

import numpy as np

from qvae.metrics.clock_geometry import sample_bilinear

__all__ = ["find_hands"]

_OUTER_RADII = 0.50 + 0.17 * (np.arange(8) + 0.5) / 8  # of R
_SHAFT = slice(0, 5)  # of those, the furthest from blurred numerals: for the angle
_CLEAR = slice(0, 7)  # clear of the tip of the shortest hand: for ghosts
_JUDGED = slice(5, 8)  # .60-.67 R: for contrast and colour
_OUTER_RAYS = 360
_INNER_RADII = np.array([0.19, 0.225, 0.26, 0.295, 0.33])  # of R
_INNER_RAYS = 180
_DEGREES = 360 / _INNER_RAYS  # between inner rays
_REACH = 16  # rays (degrees) either side of the minute hand that can hold its ink
_GHOST_FLOOR = 0.1  # ink below this share of the hand's contrast is texture
_WIDTHS = (10.0, 16.0, 22.0)  # degrees to either side, of the hands in the coarse fit
_SHAPES = ((3.0, 1.2), (3.8, 1.2), (4.6, 1.2), (4.5, 4.0))  # pixels (width, soft edge), fine fit
_TRIALS = np.arange(-8.0, 9.0)  # degrees off the coarse fit
_EPSILON = np.float32(1e-6)


@dataclasses.dataclass(frozen=True, slots=True)
class _Outer:
    """The ring that the minute hand alone reaches."""

    face: np.ndarray  # [n, 3]
    hand: np.ndarray  # [n, 3], the hand's colour less the face's
    angle: np.ndarray  # [n] degrees
    ghost: np.ndarray  # [n]
    profile: np.ndarray  # [n, _REACH + 1] the hand's ink by degrees off its middle; 1 there


def find_hands(
    pictures: np.ndarray, centre: np.ndarray, radius: np.ndarray
) -> dict[str, np.ndarray]:
    """Read the hands of one dial a picture.

    Args:
        pictures: ``[N, 64, 64, 3]`` float32 in 0-1.
        centre: ``[N, 2]`` x and y of the dials' centres in pixels.
        radius: ``[N]`` pixels.

    Returns:
        The fields of ``ClockReading`` but for the dial's place.
    """
    outer = _read_outer(_ring(pictures, centre, radius[:, None] * _OUTER_RADII, _OUTER_RAYS))
    radii = radius[:, None] * _INNER_RADII
    hidden = _minute_ink(outer, radius * _OUTER_RADII[_SHAFT].mean(), radii)
    rest = _ring(pictures, centre, radii, _INNER_RAYS) - outer.face[:, None, None]
    rest -= hidden[..., None] * outer.hand[:, None, None]
    contrast = np.linalg.norm(outer.hand, axis=1)
    fit = _fit_anywhere(rest.mean(axis=2), 1 - hidden.mean(axis=2), contrast)
    hour_angle, hour = _fit_near(fit.argmax(axis=1), rest, 1 - hidden, radii)
    return {
        "minutes": _consistent_time(fit, outer.angle),
        "minute_angle": outer.angle,
        "hour_angle": hour_angle,
        "contrast": contrast,
        "ghost": outer.ghost,
        "minute_colour": np.clip(outer.face + outer.hand, 0, 1),
        "hour_colour": np.clip(outer.face + hour, 0, 1),
        "face": outer.face,
    }


def _ring(pictures: np.ndarray, centre: np.ndarray, radii: np.ndarray, rays: int) -> np.ndarray:
    """Colours on rings around the centre: ``[n, rays, radii, 3]``, clockwise from up."""
    angle = np.arange(rays)[:, None] * (2 * np.pi / rays)
    x = centre[:, 0, None, None] + radii[:, None] * np.sin(angle)
    y = centre[:, 1, None, None] - radii[:, None] * np.cos(angle)
    return sample_bilinear(pictures, x, y)


def _window_sum(values: np.ndarray, reach: int) -> np.ndarray:
    """Sum over ``reach`` rays either side of each ray of a circle: ``[n, rays]`` to the same."""
    padded = np.pad(values, ((0, 0), (reach + 1, reach)), mode="wrap").cumsum(axis=1)
    return padded[:, 2 * reach + 1 :] - padded[:, : -2 * reach - 1]


def _read_outer(ring: np.ndarray) -> _Outer:
    """Find the minute hand in the outer ring ``[n, 360, radii, 3]``."""
    clock = np.arange(len(ring))[:, None]
    face = np.median(ring.mean(axis=2), axis=1)
    shaft = ring[:, :, _SHAFT].mean(axis=2) - face[:, None]
    peak = _window_sum(np.linalg.norm(shaft, axis=2), 4).argmax(axis=1)
    # Ink along the hand's own colour: unlike the norm, noise does not bias it.
    near = shaft[clock, (peak[:, None] + np.arange(-3, 4)) % _OUTER_RAYS].mean(axis=1)
    direction = near / np.maximum(np.linalg.norm(near, axis=1, keepdims=True), _EPSILON)
    signed = (shaft @ direction[:, :, None])[:, :, 0]
    peak = _window_sum(signed, 4).argmax(axis=1)
    angle = peak.astype(np.float64)
    steps = np.arange(-_REACH, _REACH + 1)
    for _ in range(3):  # the window follows the centroid
        start = np.rint(angle).astype(np.intp)
        window = np.maximum(signed[clock, (start[:, None] + steps) % _OUTER_RAYS], 0)
        angle = start + window @ steps / np.maximum(window.sum(axis=1), _EPSILON)
    middle = np.rint(angle).astype(np.intp)[:, None]
    # The median over radii, because a short hand ends within the ring.
    judged = ring[:, :, _JUDGED] - face[:, None, None]
    hand = np.median(judged[clock, (middle + np.arange(-1, 2)) % _OUTER_RAYS].mean(axis=1), axis=1)
    sides = [_between(signed, angle[:, None] + side * np.arange(_REACH + 1)) for side in (-1, 1)]
    profile = np.maximum(sides[0] + sides[1], 0) / 2
    profile /= np.maximum(profile[:, :1], _EPSILON)
    ghost = _ghost(ring[:, :, _CLEAR].mean(axis=2) - face[:, None], middle, hand)
    return _Outer(face, hand, angle % 360, ghost, np.minimum(profile, 1))


def _between(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate circles ``[n, rays]`` linearly at fractional rays ``[n, m]``."""
    clock = np.arange(len(values))[:, None]
    low = np.floor(at).astype(np.intp)
    share = at - low
    rays = values.shape[1]
    return values[clock, low % rays] * (1 - share) + values[clock, (low + 1) % rays] * share


def _ghost(offset: np.ndarray, middle: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """Ink away from the hand as a share of the hand's, both above the texture floor: ``[n]``."""
    clock = np.arange(len(offset))[:, None]
    smooth = np.stack([_window_sum(offset[..., channel], 4) / 9 for channel in range(3)], axis=2)
    ink = np.linalg.norm(smooth, axis=2)
    ink[ink < _GHOST_FLOOR * np.linalg.norm(hand, axis=1, keepdims=True)] = 0
    own = ink[clock, (middle + np.arange(-_REACH - 4, _REACH + 5)) % _OUTER_RAYS].sum(axis=1)
    return (ink.sum(axis=1) - own) / np.maximum(own, _EPSILON)


def _minute_ink(outer: _Outer, radius: np.ndarray, inner_radii: np.ndarray) -> np.ndarray:
    """The minute hand's profile across, carried inwards: ``[n, rays, radii]`` in 0-1.

    Args:
        outer: the reading of the outer ring.
        radius: ``[n]`` pixels, where the profile was taken.
        inner_radii: ``[n, radii]`` pixels, where it is wanted.
    """
    turn = np.arange(_INNER_RAYS) * (2 * np.pi / _INNER_RAYS) - np.radians(outer.angle)[:, None]
    across = inner_radii[:, None] * np.abs(np.sin(turn))[:, :, None]  # pixels
    # Behind the centre there is no hand: look the profile up beyond its end.
    step = np.degrees(np.arcsin(np.minimum(across / radius[:, None, None], 1)))
    step = np.where((np.cos(turn) > 0)[:, :, None], np.minimum(step, _REACH), _REACH)
    low = np.minimum(step.astype(np.intp), _REACH - 1)
    clock = np.arange(len(radius))[:, None, None]
    share = step - low
    ink = outer.profile[clock, low] * (1 - share) + outer.profile[clock, low + 1] * share
    return ink.astype(np.float32)


@functools.cache
def _templates() -> np.ndarray:
    """Circulants of soft-edged hands of each width: ``[widths, rays, angles]``."""
    rays = np.arange(_INNER_RAYS) * _DEGREES
    off = np.abs((rays[:, None] - rays + 180) % 360 - 180)
    reach = np.array(_WIDTHS)[:, None, None]
    return np.clip(0.5 + (reach - off) / 9, 0, 1).astype(np.float32)


def _fit_anywhere(rest: np.ndarray, clear: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Energy that an hour hand at each angle explains: ``[n, angles]``.

    What the minute hand covers counts as a faint hand, a quarter of its own contrast: a hand that
    cannot be seen anywhere else must be there. A third hid the faintest hour hands of real clocks;
    a fifth loses hidden ones when the picture is blurred.

    Args:
        rest: ``[n, rays, 3]`` ink that is not the minute hand's, as colour less the face's.
        clear: ``[n, rays]`` share of each ray that the minute hand does not cover.
        contrast: ``[n]`` of the minute hand.
    """
    ink = (rest * clear[:, :, None]).transpose(0, 2, 1)
    fits = []
    for template in _templates():
        square = template**2
        seen = clear**2 @ square
        covered = (square.sum(axis=0) - seen) * (contrast[:, None] / 4) ** 2
        fits.append(np.square(ink @ template).sum(axis=1) / (seen + 0.05) + covered)
    return np.maximum.reduce(fits)


def _fit_near(
    coarse: np.ndarray, rest: np.ndarray, clear: np.ndarray, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit hands of several shapes at one-degree steps around a coarse angle.

    Args:
        coarse: ``[n]`` inner ray to search around.
        rest: ``[n, rays, radii, 3]`` ink that is not the minute hand's.
        clear: ``[n, rays, radii]`` share that the minute hand does not cover.
        radii: ``[n, radii]`` pixels.

    Returns:
        The hour hand's angle ``[n]`` in degrees, and its colour less the face's ``[n, 3]``.
    """
    clock = np.arange(len(rest))
    steps = np.arange(-20, 21)
    rays = (coarse[:, None] + steps) % _INNER_RAYS
    ink = rest[clock[:, None], rays].reshape(len(rest), -1, 3)
    clear = clear[clock[:, None], rays][..., None]
    turn = np.radians(steps[:, None] * _DEGREES - _TRIALS).astype(np.float32)
    across = radii.astype(np.float32)[:, None, :, None] * np.abs(np.sin(turn))[:, None, :]
    best = np.full(len(rest), -1.0)
    energies, hour = np.zeros((len(rest), len(_TRIALS))), np.zeros((len(rest), 3))
    for width, edge in _SHAPES:
        hand = np.clip(0.5 + (width / 2 - across) / edge, 0, 1) * clear  # [n, 41, radii, trials]
        hand = hand.reshape(len(rest), -1, len(_TRIALS)).transpose(0, 2, 1)
        weight = np.square(hand).sum(axis=2) + 0.5
        energy = np.square(hand @ ink).sum(axis=2) / weight  # [n, trials]
        top = energy.argmax(axis=1)
        better = energy[clock, top] > best
        energies = np.where(better[:, None], energy, energies)
        # The middle of the hand alone: soft edges would pale its colour.
        core = hand[clock, top] ** 3
        colour = (core[:, None] @ ink)[:, 0] / (
            (core * hand[clock, top]).sum(axis=1)[:, None] + 0.1
        )
        hour = np.where(better[:, None], colour, hour)
        best = np.maximum(best, energy[clock, top])
    return (coarse * _DEGREES + _TRIALS[0] + _summit(energies)) % 360, hour


def _summit(scores: np.ndarray) -> np.ndarray:
    """Fractional index of the largest score, by the parabola through its neighbours: ``[n]``."""
    best = scores.argmax(axis=1).clip(1, scores.shape[1] - 2)
    clock = np.arange(len(scores))
    before, top, after = (scores[clock, best + step] for step in (-1, 0, 1))
    move = (after - before) / (2 * np.maximum(2 * top - before - after, _EPSILON))
    return best + np.clip(move, -1, 1)


def _consistent_time(fit: np.ndarray, minute_angle: np.ndarray) -> np.ndarray:
    """Of the twelve times with this minute hand, the one whose hour hand fits best: ``[n]``."""
    times = minute_angle[:, None] / 6 + 60 * np.arange(12)
    best = _between(fit, times / 2 / _DEGREES).argmax(axis=1)
    return times[np.arange(len(fit)), best]

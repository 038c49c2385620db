"""Random looks for clocks: style number i is a pure function of (seed, i)."""

import dataclasses

import numpy as np

__all__ = ["ClockStyle", "sample_styles"]

# Least RGB distance (channels 0-1) and least difference in luma between an ink and what it is
# drawn on. The hands' floor keeps them above .55 after antialiasing; see tests/test_clock_renderer.
_HAND_FLOOR = (0.75, 0.25)
_MARK_FLOOR = (0.60, 0.35)
_RIM_FLOOR = (0.30, 0.10)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClockStyle:
    """The looks of N clocks as a struct of arrays; the first axis of every field is the clock.

    Colours are ``[N, 3]`` RGB in 0-1, angles ``[N]`` radians; lengths, widths and radii are ``[N]``
    pixels of a 64x64 picture. Pixel (row, column) has its centre at (y, x) = (row, column).

    Raises:
        ValueError: the fields disagree on N.
    """

    background: np.ndarray
    """Colour at the start of the background's linear gradient."""
    background_end: np.ndarray
    """Colour at the end of the gradient."""
    gradient_angle: np.ndarray
    """Direction of the gradient, clockwise from up."""
    face: np.ndarray
    rim_colour: np.ndarray
    tick_colour: np.ndarray
    numeral_colour: np.ndarray
    hour_colour: np.ndarray
    minute_colour: np.ndarray
    """Colour of the minute hand and of the hub."""
    centre: np.ndarray
    """``[N, 2]`` x and y of the dial's centre."""
    radius: np.ndarray
    """Radius R of the dial, rim included."""
    rim_width: np.ndarray
    hour_length: np.ndarray
    """From the centre to the tip, like ``minute_length``."""
    hour_width: np.ndarray
    hour_tail: np.ndarray
    """From the centre backwards, like ``minute_tail``."""
    minute_length: np.ndarray
    minute_width: np.ndarray
    minute_tail: np.ndarray
    hub_radius: np.ndarray
    tick_count: np.ndarray
    """``[N]`` int32: 0, 4, 12 or 60."""
    tick_length: np.ndarray
    tick_width: np.ndarray
    numeral_count: np.ndarray
    """``[N]`` int32: 0, 4 or 12."""

    def __post_init__(self) -> None:
        """Check that every field describes the same clocks."""
        for field in dataclasses.fields(self):
            length = len(getattr(self, field.name))
            if length != len(self.radius):
                raise ValueError(
                    f"{field.name} must have one entry per clock ({len(self.radius)}), got {length}"
                )

    def __len__(self) -> int:
        """Number of clocks."""
        return len(self.radius)

    def take(self, indices: np.ndarray | list[int] | slice) -> "ClockStyle":
        """Select clocks by anything that indexes the first axis of a numpy array.

        Example:
            >>> len(sample_styles(5, seed=0).take([0, 0, 3]))
            3
        """
        fields = dataclasses.fields(self)
        return ClockStyle(**{f.name: getattr(self, f.name)[indices] for f in fields})


class _Draws:
    """Uniform random columns, one value a clock: each is a hash of (seed, clock, column)."""

    def __init__(self, num: int, *, seed: int, start: int) -> None:
        clocks = np.arange(start, start + num, dtype=np.uint64)
        self._keys = _mix(clocks + _mix(np.array([seed], dtype=np.uint64)))
        self._column = 0

    def __call__(self, low: float | int = 0, high: float | int = 1) -> np.ndarray:
        """The next ``[N]`` float32 column in ``[low, high)``."""
        self._column += 1
        bits = _mix(self._keys + np.uint64(self._column)) >> np.uint64(40)
        return np.float32(low) + bits.astype(np.float32) * np.float32((high - low) / 2**24)

    def choice(self, values: tuple[int, ...], weights: tuple[float, ...]) -> np.ndarray:
        """The next ``[N]`` int32 column, drawn from ``values`` with the given ``weights``."""
        picked = np.searchsorted(np.cumsum(weights)[:-1], self() * sum(weights), side="right")
        return np.array(values, dtype=np.int32)[picked]


def _mix(keys: np.ndarray) -> np.ndarray:
    """SplitMix64: a bijection of 64-bit words whose outputs look independent of each other."""
    keys = keys * np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """HSV in 0-1 to RGB in 0-1: ``[N]`` each to ``[N, 3]`` float32; the hue wraps around."""
    sector = (hue[:, None] * 6 + np.array([5, 3, 1], dtype=np.float32)) % 6
    fade = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * fade)).astype(np.float32)


def _ink(draw: _Draws) -> np.ndarray:
    """A strong colour three times in four, else nearly black or nearly white."""
    vivid, bright, pale = draw() < 0.75, draw() < 0.5, draw(0, 0.15)
    grey = np.where(bright, 1 - pale, pale)
    return _rgb(
        draw(),
        np.where(vivid, draw(0.7, 1), draw(0, 0.1)),
        np.where(vivid, draw(0.45, 1), grey),
    )


def _clearance(
    ink: np.ndarray, grounds: list[np.ndarray], floor: tuple[float, float]
) -> np.ndarray:
    """How far ``ink`` stands off the nearest ground, as a share of ``floor``: ``[N]``."""
    scores = [
        np.minimum(
            np.linalg.norm(ink - ground, axis=1) / floor[0],
            np.abs((ink - ground) @ _LUMA) / floor[1],
        )
        for ground in grounds
    ]
    return np.minimum.reduce(scores)


def _visible_ink(draw: _Draws, *, on: list[np.ndarray], floor: tuple[float, float]) -> np.ndarray:
    """The first of eight random inks that stands off every ground, else the clearest of them."""
    best = np.zeros_like(on[0])
    score = np.full(len(best), -1, dtype=np.float32)
    for _ in range(8):
        ink = _ink(draw)
        clearance = _clearance(ink, on, floor)
        better = (score < 1) & (clearance > score)
        best, score = np.where(better[:, None], ink, best), np.where(better, clearance, score)
    return best


def _face(draw: _Draws) -> np.ndarray:
    """A light face, nearly white or tinted, two times in three; else a dark one."""
    hue, light = draw(), draw() < 0.66
    saturation = np.where(light, draw(0, 0.22), draw(0.2, 0.8))
    return _rgb(hue, saturation, np.where(light, draw(0.86, 1), draw(0.05, 0.26)))


def sample_styles(num: int, *, seed: int, start: int = 0) -> ClockStyle:
    """Draw styles number ``start`` to ``start + num - 1`` of the sequence ``seed``.

    A style depends on (seed, its number) alone, so any batching gives the same clocks.

    Args:
        num: how many, at least 0.
        seed: which sequence, at least 0.
        start: number of the first one, at least 0.

    Raises:
        ValueError: a negative argument.

    Example:
        >>> whole, part = sample_styles(8, seed=1), sample_styles(3, seed=1, start=5)
        >>> bool((whole.face[5:] == part.face).all())
        True
    """
    for name, value in {"num": num, "seed": seed, "start": start}.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    draw = _Draws(num, seed=seed, start=start)
    return ClockStyle(**_colours(draw), **_shapes(draw))


def _colours(draw: _Draws) -> dict[str, np.ndarray]:
    hue, saturation, value = draw(), draw(0.1, 0.75), draw(0.3, 0.95)
    background = _rgb(hue, saturation, value)
    end_value = np.clip(value + draw(-0.3, 0.3), 0.15, 1)
    background_end = _rgb(hue + draw(-0.15, 0.15), saturation, end_value)
    face = _face(draw)
    return {
        "background": background,
        "background_end": background_end,
        "gradient_angle": draw(0, 2 * np.pi),
        "face": face,
        "rim_colour": _visible_ink(draw, on=[face, background, background_end], floor=_RIM_FLOOR),
        "tick_colour": _visible_ink(draw, on=[face], floor=_MARK_FLOOR),
        "numeral_colour": _visible_ink(draw, on=[face], floor=_MARK_FLOOR),
        "hour_colour": _visible_ink(draw, on=[face], floor=_HAND_FLOOR),
        "minute_colour": _visible_ink(draw, on=[face], floor=_HAND_FLOOR),
    }


def _shapes(draw: _Draws) -> dict[str, np.ndarray]:
    radius = draw(25, 30)
    minute_width = draw(2.2, 3.2)
    numeral_count = draw.choice((0, 4, 12), (0.4, 0.2, 0.4))
    # Numerals need the room that long ticks would take.
    tick_length = radius * np.where(numeral_count > 0, draw(0.035, 0.05), draw(0.06, 0.18))
    return {
        "centre": np.stack([draw(29.5, 33.5), draw(29.5, 33.5)], axis=1),
        "radius": radius,
        "rim_width": draw(1.0, 2.4),
        "hour_length": radius * draw(0.34, 0.46),
        "hour_width": minute_width + draw(0.8, 1.6),  # so that it shows under the minute hand
        "hour_tail": radius * draw(0, 0.14),
        "minute_length": radius * draw(0.66, 0.76),
        "minute_width": minute_width,
        "minute_tail": radius * draw(0, 0.16),
        "hub_radius": radius * draw(0.05, 0.11),
        "tick_count": draw.choice((0, 4, 12, 60), (0.15, 0.2, 0.35, 0.3)),
        "tick_length": tick_length,
        "tick_width": draw(1.0, 2.0),
        "numeral_count": numeral_count,
    }

"""Analog clocks at any time in any style, antialiased: numpy only, thousands a second on a core.

Every shape is a signed distance in pixels, and its coverage of a pixel is ``clip(.5 - distance)``.
Shapes are laid front to back: each takes its share of the light that those before it let through,
which makes the picture one weighted sum of colours, and the sum one small matrix product.
"""

import numpy as np

from qvae.data.clock_style import ClockStyle, sample_styles

__all__ = ["SIZE", "ClockStyle", "render_clocks", "sample_styles"]

SIZE = 64  # height and width of a picture

# Eight clocks at a time keep the working set (a few 128 kB planes) in the second-level cache.
_CHUNK = 8
_PIXELS = np.arange(SIZE, dtype=np.float32)
_TURN = 2 * np.pi

_FONT = {
    "0": "### #.# #.# #.# ###",
    "1": ".# ## .# .# .#",
    "2": "### ..# ### #.. ###",
    "3": "### ..# .## ..# ###",
    "4": "#.# #.# ### ..# ..#",
    "5": "### #.. ### ..# ###",
    "6": "### #.. ### #.# ###",
    "7": "### ..# ..# .#. .#.",
    "8": "### #.# ### #.# ###",
    "9": "### #.# ### ..# ###",
}
_ROWS, _COLUMNS = 5, 6  # cells of the widest numerals, 10 and 12


def _numeral_bitmaps() -> tuple[np.ndarray, np.ndarray]:
    """Cells of the numerals 12, 1, ..., 11 (``[12, 5, 6]``, 0 or 1) and their widths (``[12]``)."""
    bitmaps = np.zeros((12, _ROWS, _COLUMNS), dtype=np.float32)
    widths = np.zeros(12, dtype=np.float32)
    for hour in range(12):
        digits = [_FONT[digit].split() for digit in str(hour or 12)]
        for row, cells in enumerate(".".join(parts) for parts in zip(*digits, strict=True)):
            bitmaps[hour, row, : len(cells)] = [cell == "#" for cell in cells]
            widths[hour] = len(cells)
    return bitmaps, widths


_BITMAPS, _WIDTHS = _numeral_bitmaps()


def render_clocks(minutes: np.ndarray, styles: ClockStyle) -> np.ndarray:
    """Draw one clock a time; the hour hand moves continuously.

    Args:
        minutes: ``[N]`` minutes after 12:00 in ``[0, 720)``, whole or not.
        styles: looks of N clocks.

    Returns:
        ``[N, 64, 64, 3]`` uint8 RGB pictures. Each depends on its own time and style alone.

    Raises:
        ValueError: ``minutes`` is not ``[N]`` for N styles, or a time is outside ``[0, 720)``.

    Example:
        >>> render_clocks(np.array([260, 260.5]), sample_styles(2, seed=0)).shape
        (2, 64, 64, 3)
    """
    minutes = np.asarray(minutes, dtype=np.float64)
    if minutes.shape != (len(styles),):
        raise ValueError(
            f"minutes must have shape ({len(styles)},), one per style, got {minutes.shape}"
        )
    wrong = ~((minutes >= 0) & (minutes < 720))
    if wrong.any():
        raise ValueError(f"minutes must lie in [0, 720), got {minutes[wrong][0]}")
    pictures = np.empty((len(minutes), SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, len(minutes), _CHUNK):
        part = slice(start, start + _CHUNK)
        pictures[part] = _render_chunk(minutes[part], styles.take(part))
    return pictures


def _render_chunk(minutes: np.ndarray, style: ClockStyle) -> np.ndarray:
    x = (_PIXELS - style.centre[:, :1])[:, None, :]  # [n, 1, 64], to the right of the centre
    y = (_PIXELS - style.centre[:, 1:])[:, :, None]  # [n, 64, 1], below it
    distance = np.sqrt(x * x + y * y)  # [n, 64, 64], as is every coverage below
    minute_hand = _hand(
        x, y, minutes / 60, style.minute_length, style.minute_width, style.minute_tail
    )
    hub = _coverage(distance - _planes(style.hub_radius))
    hour_hand = _hand(x, y, minutes / 720, style.hour_length, style.hour_width, style.hour_tail)
    front_to_back = [
        (np.maximum(minute_hand, hub, out=hub), style.minute_colour),
        (hour_hand, style.hour_colour),
        (_numerals(style), style.numeral_colour),
        (_ticks(x, y, distance, style), style.tick_colour),
        (_coverage(distance - _planes(style.radius - style.rim_width)), style.face),
        (_coverage(distance - _planes(style.radius)), style.rim_colour),
        (_gradient(style), style.background_end),
        (np.ones((1, 1, 1), dtype=np.float32), style.background),
    ]
    return _composite(front_to_back)


def _composite(front_to_back: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mix layers of (coverage, colour), the last of which covers everything."""
    colours = np.stack([colour for _, colour in front_to_back], axis=1)  # [n, layers, 3]
    weights = np.empty((*colours.shape[:2], SIZE, SIZE), dtype=np.float32)
    light = np.ones((len(colours), SIZE, SIZE), dtype=np.float32)
    for layer, (coverage, _) in enumerate(front_to_back):
        np.multiply(light, coverage, out=weights[:, layer])
        light -= weights[:, layer]
    # The weights of a pixel sum to one, so half a level added to the colours rounds the result.
    levels = weights.reshape(*weights.shape[:2], -1).transpose(0, 2, 1) @ (colours * 255 + 0.5)
    return levels.astype(np.uint8).reshape(-1, SIZE, SIZE, 3)


def _planes(values: np.ndarray) -> np.ndarray:
    """One float32 number a clock, shaped to broadcast over its pixels: ``[n, 1, 1]``."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Share of each pixel inside a shape, from its signed distance, which is overwritten."""
    np.subtract(np.float32(0.5), distance, out=distance)
    np.maximum(distance, np.float32(0), out=distance)
    return np.minimum(distance, np.float32(1), out=distance)


def _hand(
    x: np.ndarray,
    y: np.ndarray,
    turns: np.ndarray,
    length: np.ndarray,
    width: np.ndarray,
    tail: np.ndarray,
) -> np.ndarray:
    """Coverage of a bar ``turns`` clockwise from up, which ends ``tail`` behind the centre."""
    sine, cosine = _planes(np.sin(turns * _TURN)), _planes(np.cos(turns * _TURN))
    along = x * sine - (y * cosine + _planes((length - tail) / 2))  # from the bar's middle
    across = x * cosine + y * sine
    np.abs(along, out=along)
    np.abs(across, out=across)
    along -= _planes((length + tail) / 2)
    across -= _planes(width / 2)
    return _coverage(np.maximum(along, across, out=along))


def _gradient(style: ClockStyle) -> np.ndarray:
    """Share of the second background colour: 0 to 1 along the direction of the gradient."""
    middle = (SIZE - 1) / 2
    x = (_PIXELS - middle)[None, None, :] / SIZE
    y = (_PIXELS - middle)[None, :, None] / SIZE
    sine, cosine = _planes(np.sin(style.gradient_angle)), _planes(np.cos(style.gradient_angle))
    share = x * sine + (np.float32(0.5) - y * cosine)
    np.maximum(share, np.float32(0), out=share)
    return np.minimum(share, np.float32(1), out=share)


def _ticks(x: np.ndarray, y: np.ndarray, distance: np.ndarray, style: ClockStyle) -> np.ndarray:
    """Coverage of the ticks; of sixty, those at the hours are longer and wider."""
    turns = np.arctan2(x, -y)
    turns *= np.float32(1 / _TURN)
    outer = style.radius - style.rim_width - 0.5
    inner = outer - style.tick_length
    count = np.clip(style.tick_count, 4, 12)
    width = np.where(style.tick_count == 0, -SIZE, style.tick_width)  # no ticks: never inside
    coverage = _tick_ring(turns, distance, count, inner, outer, width)
    fine = np.flatnonzero(style.tick_count == 60)
    if fine.size:
        between = (inner + 0.4 * style.tick_length)[fine]
        sixty = np.full(fine.size, 60)
        ring = _tick_ring(
            turns[fine], distance[fine], sixty, between, outer[fine], 0.5 * width[fine]
        )
        coverage[fine] = np.maximum(coverage[fine], ring)
    return coverage


def _tick_ring(
    turns: np.ndarray,
    distance: np.ndarray,
    count: np.ndarray,
    inner: np.ndarray,
    outer: np.ndarray,
    width: np.ndarray,
) -> np.ndarray:
    """Coverage of ``count`` equal ticks from radius ``inner`` to ``outer``."""
    across = turns * _planes(count)
    across -= np.rint(across)  # from the nearest tick, in steps between ticks
    np.abs(across, out=across)
    across *= distance
    across *= _planes(_TURN / count)
    across -= _planes(width / 2)
    along = np.abs(distance - _planes((inner + outer) / 2))
    along -= _planes((outer - inner) / 2)
    return _coverage(np.maximum(along, across, out=along))


def _overlap(cells: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Length that pixels share with cells of width ``size`` centred at ``cells``: ``[..., 64]``."""
    shared = np.abs(_PIXELS - cells[..., None])
    np.subtract((0.5 + size / 2)[..., None], shared, out=shared)
    np.maximum(shared, np.float32(0), out=shared)
    return np.minimum(shared, np.minimum(size, np.float32(1))[..., None], out=shared)


def _numerals(style: ClockStyle) -> np.ndarray:
    """Exact coverage of bitmap numerals at sub-pixel positions.

    A numeral is a sum of square cells, and the area a pixel shares with a cell is the product of
    an overlap in x and one in y. All twelve numerals are thus one matrix product a clock:
    rows ``[64, 60]`` by columns ``[60, 64]``.
    """
    coverage = np.zeros((len(style), SIZE, SIZE), dtype=np.float32)
    shown = np.flatnonzero(style.numeral_count)
    if not shown.size:
        return coverage
    style = style.take(shown)
    sparse = (style.numeral_count == 4)[:, None]
    cell = style.radius[:, None] * np.where(sparse, 0.050, 0.042).astype(np.float32)  # [n, 1]
    angle = np.arange(12) * (_TURN / 12)
    sine, cosine = np.sin(angle), np.cos(angle)
    # On a ring at .78 R, or further out where the numeral's box would come within .69 R,
    # so that the ring in which the minute hand alone has ink stays clear.
    reach = cell * (np.abs(sine) * _WIDTHS + np.abs(cosine) * _ROWS) / 2
    ring = np.maximum(0.78 * style.radius[:, None], 0.69 * style.radius[:, None] + reach)
    x = (style.centre[:, :1] + ring * sine).astype(np.float32)  # [n, 12]
    y = (style.centre[:, 1:] - ring * cosine).astype(np.float32)
    column = np.arange(_COLUMNS, dtype=np.float32) - (_WIDTHS[:, None] - 1) / 2  # [12, 6]
    row = np.arange(_ROWS, dtype=np.float32) - (_ROWS - 1) / 2
    size = cell[:, :, None]
    across = _BITMAPS @ _overlap(x[:, :, None] + column * size, size)  # [n, 12, 5, 64]
    across *= np.where(sparse, np.arange(12) % 3 == 0, True)[:, :, None, None]
    down = _overlap(y[:, :, None] + row * size, size)
    flat = (len(style), 12 * _ROWS, SIZE)
    coverage[shown] = down.reshape(flat).transpose(0, 2, 1) @ across.reshape(flat)
    return np.minimum(coverage, np.float32(1), out=coverage)

"""A second renderer of clocks, with other fonts, rims and hand shapes: nothing is shared.

It is here to ask whether a model that reads clocks has learned clocks, or one renderer. Drawn with
Pillow at four times the size and averaged down. Hands are tapered, lozenges or lollipops; rims are
double, square or round with a shadow; numerals are of a TrueType font, Arabic or Roman. Only the
lengths of the hands follow the convention that the picture is to be read by: the longer one tells
the minutes.
"""

import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["render_second"]

SIZE, _SCALE = 64, 4
_ROMAN = ("XII", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI")


def render_second(minutes: np.ndarray, *, seed: int) -> np.ndarray:
    """Draw a clock for each time.

    Args:
        minutes: ``[N]`` minutes after 12:00.
        seed: clock i depends on (seed, i) and its time alone.

    Returns:
        ``[N, 64, 64, 3]`` uint8.
    """
    pictures = []
    for index, minute in enumerate(np.asarray(minutes).tolist()):
        picture = _Clock(random.Random(f"{seed}/{index}")).draw(minute)
        small = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
        pictures.append(np.asarray(small, dtype=np.uint8))
    return np.stack(pictures)


class _Clock:
    """One clock's looks."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        middle = SIZE * _SCALE / 2
        self.radius = rng.uniform(25, 30) * _SCALE
        self.x = middle + rng.uniform(-1.5, 1.5) * _SCALE
        self.y = middle + rng.uniform(-1.5, 1.5) * _SCALE
        self.is_light = rng.random() < 0.6
        self.face = self._grey(0.88, 1.0) if self.is_light else self._grey(0.02, 0.2)
        self.ink = self._grey(0.0, 0.2) if self.is_light else self._grey(0.85, 1.0)
        self.background = tuple(rng.randrange(60, 230) for _ in range(3))
        picture = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), self.background)
        self.picture, self.pen = picture, ImageDraw.Draw(picture)

    def _grey(self, low: float, high: float) -> tuple[int, int, int]:
        level, tint = self.rng.uniform(low, high), self.rng.uniform(-0.06, 0.06)
        levels = (level + tint, level, level - tint)
        red, green, blue = (int(255 * min(max(value, 0), 1)) for value in levels)
        return red, green, blue

    def at(self, turn: float, reach: float) -> tuple[float, float]:
        """The point at a share of the radius in a direction, in turns clockwise from up."""
        angle = 2 * math.pi * turn
        reach *= self.radius
        return self.x + reach * math.sin(angle), self.y - reach * math.cos(angle)

    def draw(self, minute: float) -> Image.Image:
        """Draw the clock at a time."""
        self._rim()
        self._marks()
        shape = self.rng.choice((self._tapered, self._lozenge, self._lollipop))
        width = self.rng.uniform(0.05, 0.075)
        shape(minute / 720, self.rng.uniform(0.36, 0.44), width * 1.5)
        shape(minute / 60, self.rng.uniform(0.68, 0.75), width)
        self._disc(0, 0, self.rng.uniform(0.06, 0.1), self.ink)
        return self.picture

    def _disc(self, turn: float, reach: float, size: float, fill: tuple[int, int, int]) -> None:
        x, y = self.at(turn, reach)
        size *= self.radius
        self.pen.ellipse((x - size, y - size, x + size, y + size), fill=fill)

    def _rim(self) -> None:
        style = self.rng.choice(("double", "square", "shadow"))
        rim = tuple(self.rng.randrange(256) for _ in range(3))
        red, green, blue = rim
        if style == "square":
            r = self.radius
            box = (self.x - r, self.y - r, self.x + r, self.y + r)
            self.pen.rounded_rectangle(box, radius=r * 0.25, fill=(red, green, blue))
        elif style == "shadow":
            self._disc(0.375, 0.06, 1.0, (30, 30, 30))
        self._disc(0, 0, 1.0, (red, green, blue))
        if style == "double":
            self._disc(0, 0, 0.96, self.face)
            self._disc(0, 0, 0.93, (red, green, blue))
        self._disc(0, 0, 0.9, self.face)

    def _marks(self) -> None:
        style = self.rng.choice(("arabic", "roman", "dots", "none"))
        font = ImageFont.load_default(size=self.radius * (0.2 if style == "arabic" else 0.14))
        for hour in range(12):
            if style == "dots":
                self._disc(hour / 12, 0.82, 0.035, self.ink)
            elif style != "none":
                text = _ROMAN[hour] if style == "roman" else str(hour or 12)
                point = self.at(hour / 12, 0.8)
                self.pen.text(point, text, fill=self.ink, font=font, anchor="mm")

    def _polygon(self, turn: float, corners: list[tuple[float, float]]) -> None:
        """Fill a shape given along and across a hand, in shares of the radius."""
        sine, cosine = math.sin(2 * math.pi * turn), math.cos(2 * math.pi * turn)
        points = [
            (
                self.x + self.radius * (along * sine + across * cosine),
                self.y - self.radius * (along * cosine - across * sine),
            )
            for along, across in corners
        ]
        self.pen.polygon(points, fill=self.ink)

    def _tapered(self, turn: float, length: float, width: float) -> None:
        tip = width * 0.35
        self._polygon(turn, [(-0.1, width), (length, tip), (length, -tip), (-0.1, -width)])

    def _lozenge(self, turn: float, length: float, width: float) -> None:
        wide = width * 1.2
        corners = [(0.0, width / 3), (length * 0.55, wide), (length, 0.02)]
        self._polygon(turn, [*corners, *((along, -across) for along, across in corners[::-1])])

    def _lollipop(self, turn: float, length: float, width: float) -> None:
        half = width * 0.55
        self._polygon(turn, [(0.0, half), (length, half), (length, -half), (0.0, -half)])
        self._disc(turn, length * 0.72, width * 1.25, self.ink)

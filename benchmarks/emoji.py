"""Read a set of emoji, 64x64 in colour, with their categories, into one .npz file.

    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz
    python benchmarks/emoji.py package -o emoji.npz

Pictures lie on white. Variants of one emoji that differ by skin, hair or sex alone are near copies:
they go to one part together, by the hash of the code points that they share (80 % train, 5 % valid,
15 % test). The category "Component" holds five pictures and is left out.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from clipart import read_pixels

from qvae.data.splits import hash_fraction

SKIN, HAIR = range(0x1F3FB, 0x1F400), range(0x1F9B0, 0x1F9B4)
PERSONS = {0x1F468, 0x1F469, 0x1F9D1, 0x1F466, 0x1F467, 0x1F9D2, 0x2640, 0x2642}
JOINERS = {0x200D, 0xFE0F}
LEFT_OUT = "Component"


def family(unified: str) -> str:
    """Return the code points that an emoji shares with its variants.

    >>> family("1F469-1F3FD-200D-1F692"), family("1F468-200D-1F692")
    ('1F692', '1F692')
    """
    told = [int(point, 16) for point in unified.split("-")]
    kept = [p for p in told if p not in {*SKIN, *HAIR, *PERSONS, *JOINERS}]
    return "-".join(f"{point:X}" for point in kept)


def part(key: str) -> str:
    """Return the part in which a family lies."""
    fraction = hash_fraction(key.encode())
    return "train" if fraction < 0.8 else "valid" if fraction < 0.85 else "test"


def pictures(package: Path) -> Iterator[tuple[str, str, str]]:
    """Give file name, category and code points of each picture, variants included."""
    for told in json.loads((package / "emoji.json").read_text()):
        if told["category"] != LEFT_OUT:
            for one in [told, *told.get("skin_variations", {}).values()]:
                if one["has_img_google"]:
                    yield one["image"], told["category"], one["unified"]


def main() -> None:
    """Write pictures, labels and parts into one .npz file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="holds emoji.json and img/google/64")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    files, categories, unified = zip(*pictures(args.package), strict=True)
    x = np.stack([read_pixels(args.package / "img" / "google" / "64" / name) for name in files])
    parts = np.array([part(family(points)) for points in unified])
    for name in ("train", "valid", "test"):
        sys.stdout.write(f"{name}: {(parts == name).sum()} pictures\n")
    np.savez_compressed(args.output, x=x, label=np.array(categories), split=parts)


if __name__ == "__main__":
    main()

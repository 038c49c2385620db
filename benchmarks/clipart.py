"""Cut random crops of real colour pictures, for comparing large codebooks.

    apt-get download openclipart-png && dpkg -x openclipart-png*.deb clipart
    python benchmarks/clipart.py clipart/usr/share/openclipart/png -o crops.npz

Writes uint8 crops [N, 64, 64, 3] with their part: pictures are split 90/5/5 by the hash of their
paths before they are cut, so PSNR and usage are those of pictures never trained on. A picture with
transparency lies on white. A crop whose pixels vary by less than ``--flat`` (standard deviation of
the 0..1 values) shows nothing and is left out; how many is printed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from qvae.data.splits import split_rows

SIDE = 64
Image.MAX_IMAGE_PIXELS = 50_000_000


def is_large(path: Path) -> bool:
    """Say whether a crop fits into a picture; one that cannot be opened is named and left out."""
    try:
        with Image.open(path) as image:
            return min(image.size) >= SIDE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        sys.stderr.write(f"{path}: left out, {error}\n")
        return False


def read_pixels(path: Path) -> np.ndarray:
    """Return the RGB pixels of a picture that lies on white."""
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def cut(paths: list[Path], num: int, flat: float, seed: int) -> tuple[np.ndarray, int]:
    """Return ``num`` crops at random places of random pictures, and how many were flat.

    Each picture is read once. One that shows nothing but flat crops 50 times in a row gives no
    more, so a fifth more than asked is looked for, and what is over is dropped.
    """
    rng = np.random.default_rng(seed)
    paths = [path for path in paths if is_large(path)]
    crops, flats = [], 0
    owners, counts = np.unique(rng.integers(len(paths), size=num * 6 // 5), return_counts=True)
    for owner, wanted in zip(owners.tolist(), counts.tolist(), strict=True):
        pixels, missed = read_pixels(paths[owner]), 0
        while wanted and missed < 50:
            top = rng.integers(pixels.shape[0] - SIDE + 1)
            left = rng.integers(pixels.shape[1] - SIDE + 1)
            crop = pixels[top : top + SIDE, left : left + SIDE]
            if crop.std() < flat * 255:
                missed += 1
                flats += 1
            else:
                crops.append(crop.copy())
                wanted, missed = wanted - 1, 0
    return np.stack(crops)[rng.permutation(len(crops))[:num]], flats


def main() -> None:
    """Cut the parts and write them into one .npz file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="searched for *.png")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=30_000)
    parser.add_argument("--valid", type=int, default=500)
    parser.add_argument("--test", type=int, default=4_096)
    parser.add_argument("--flat", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    paths = sorted(args.folder.rglob("*.png"))
    if not paths:
        sys.exit(f"{args.folder}: no PNG files below it")
    keys = [path.relative_to(args.folder).as_posix().encode() for path in paths]
    crops, parts = [], []
    for number, (part, rows) in enumerate(split_rows(keys).items()):
        own = [paths[row] for row in rows]
        found, flats = cut(own, getattr(args, part), args.flat, args.seed + number)
        sys.stdout.write(f"{part}: {len(found)} crops of {len(own)} pictures, {flats} flat\n")
        crops.append(found)
        parts += [part] * len(found)
    np.savez(args.output, x=np.concatenate(crops), split=np.array(parts))


if __name__ == "__main__":
    main()

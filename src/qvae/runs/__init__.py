"""What is done with a recipe and a run folder: train, encode, decode, sample, score.

The command line and the reports call these; so can you.
"""

from qvae.runs.build import build_data, build_model
from qvae.runs.training import next_run_folder, train_recipe

__all__ = ["build_data", "build_model", "next_run_folder", "train_recipe"]

"""Training: one loop for every model."""

from qvae.train.run import TrainResult, fit
from qvae.train.settings import TrainSettings

__all__ = ["TrainResult", "TrainSettings", "fit"]

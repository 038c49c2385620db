"""How well the coordinates of a code are the factors that the data were made from."""

from qvae.metrics.disentanglement.beta_vae import beta_vae_score
from qvae.metrics.disentanglement.dci import DCI, dci
from qvae.metrics.disentanglement.factor_vae import factor_vae_score
from qvae.metrics.disentanglement.irs import irs
from qvae.metrics.disentanglement.mig import mig, mig_posterior
from qvae.metrics.disentanglement.sap import sap

__all__ = [
    "DCI",
    "beta_vae_score",
    "dci",
    "factor_vae_score",
    "irs",
    "mig",
    "mig_posterior",
    "sap",
]

"""What a decoder's output says about the data: a density or a probability of every number.

``nll`` is -log p(x|z) in nats, summed over all the numbers of a sample.
"""

from qvae.likelihoods.base import Likelihood
from qvae.likelihoods.continuous_bernoulli import ContinuousBernoulli
from qvae.likelihoods.discrete import Bernoulli, Categorical
from qvae.likelihoods.gaussian import Gaussian
from qvae.likelihoods.laplace import Laplace
from qvae.likelihoods.logistic import DiscretizedLogistic

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Laplace",
    "Likelihood",
]

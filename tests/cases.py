"""One line for each component: the laws run over these, and a guard fails if one is missing."""

# bottleneck -> constructor arguments; small enough that every law runs in milliseconds
BOTTLENECKS = {
    "identity": {"dim": 3},
    "gaussian": {"dim": 3},
    "gaussian_tc": {"dim": 3},
    "gaussian_factor": {"dim": 3, "hidden": 16, "num_layers": 2},
    "vq": {"codebook_size": 16, "dim": 3},
    "vq_ema": {"codebook_size": 16, "dim": 3},
    "fsq": {"levels": [4, 3, 5]},
}

QUANTIZERS = ["vq", "vq_ema", "fsq"]
"""Those with codes."""

REVIVING = ["vq_ema"]
"""Those that claim to bring dead codes back."""

ESTIMATING = ["gaussian_tc", "gaussian_factor"]
"""Those whose penalty estimates a divergence from the batch: it may come out negative."""

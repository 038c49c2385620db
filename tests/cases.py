"""One line for each component: the laws run over these, and a guard fails if one is missing."""

# bottleneck -> constructor arguments; small enough that every law runs in milliseconds
BOTTLENECKS = {
    "identity": {"dim": 3},
    "gaussian": {"dim": 3},
    "gaussian_tc": {"dim": 3},
    "gaussian_factor": {"dim": 3, "hidden": 16, "num_layers": 2},
    "vq": {"codebook_size": 16, "dim": 3},
    "vq_ema": {"codebook_size": 16, "dim": 3},
    "vq_cosine": {"codebook_size": 16, "dim": 3},
    "simvq": {"codebook_size": 16, "dim": 3},
    "ibq": {"codebook_size": 16, "dim": 3},
    "diveq": {"codebook_size": 16, "dim": 3},
    "gumbel": {"codebook_size": 16, "dim": 3},
    "fsq": {"levels": [4, 3, 5]},
    "lfq": {"dim": 4},
    "bsq": {"dim": 4},
    "posthoc": {"dim": 3, "levels": [4, 1, 3]},
    "residual": {
        "num_quantizers": 3,
        "quantizer": {"name": "vq_ema", "codebook_size": 16, "dim": 3},
    },
    "grouped": {"num_groups": 2, "quantizer": {"name": "vq_ema", "codebook_size": 16, "dim": 3}},
    "projected": {"dim": 5, "quantizer": {"name": "simvq", "codebook_size": 16, "dim": 3}},
}

CONTINUOUS = ["identity", "gaussian", "gaussian_tc", "gaussian_factor"]
"""Those without codes."""

QUANTIZERS = [name for name in BOTTLENECKS if name not in CONTINUOUS]
"""Those with codes."""

WRAPPERS = ["residual", "grouped", "projected"]
"""Those made of other quantizers."""

REVIVING = ["vq_ema", "vq_cosine", "simvq", "ibq", "diveq", "gumbel"]
"""Those that claim to bring dead codes back."""

STRAIGHT_THROUGH = ["vq", "vq_ema", "simvq", "fsq", "posthoc", "residual", "grouped"]
"""Those whose gradient with respect to the encoder is exactly ones."""

STOCHASTIC = ["gumbel"]
"""Those that draw their codes in training."""

OFFSET = ["vq", "vq_ema", "ibq", "diveq", "gumbel"]
"""Those whose table can be far from the origin."""
ESTIMATING = ["gaussian_tc", "gaussian_factor"]
"""Those whose penalty estimates a divergence from the batch: it may come out negative."""

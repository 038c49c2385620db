"""What the tests of priors share: a tiny case for each prior, and how it is made."""

import math

import torch

from qvae.priors.base import build_prior
from qvae.types import Condition

TIME = Condition(name="time", kind="cyclic", period=12.0, unit="h")
LABEL = Condition(name="label", kind="category", categories=("a", "b", "c"))
TINY = {"num_layers": 2, "dim": 16, "num_heads": 2}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
MASKED = {"name": "masked", **TINY, "num_steps": 3}
PRIORS = [
    {"name": "uniform"},
    {"name": "unigram"},
    {"name": "transformer", **TINY},
    {"name": "transformer", **TINY, "order": "spiral", "rope": True},
    {"name": "transformer", **TINY, "order": "multiscale"},
    {"name": "transformer", **TINY, "pattern": "delayed"},
    {"name": "transformer", **TINY, "pattern": "parallel", "order": "spiral"},
    {"name": "pixelcnn", "num_layers": 2, "dim": 8, "kernel": 3},
    {**MASKED, "uncover": "order"},
    MASKED,
    {"name": "hf", "architecture": LLAMA},
]
"""A case for each prior; a guard fails if one is missing."""


def case_name(config):
    options = [str(v) for k, v in config.items() if k in ("order", "pattern", "uncover", "rope")]
    return "-".join([config["name"], *options])


SIZES = [(7,), (5, 3), (4, 4, 4)]


def make(config, sizes=(5, 3), num_tokens=12, conditions=(TIME, LABEL), grid=None):
    prior = build_prior(
        config,
        vocab_size=sum(sizes),
        num_tokens=num_tokens,
        codebook_sizes=sizes,
        conditions=conditions,
        grid=grid or (2, num_tokens // len(sizes) // 2),
    ).eval()
    for name, parameter in prior.named_parameters():
        if "norm" not in name:
            parameter.data.mul_(4)  # far from uniform, so that a mistake shows
    return prior


def random_tokens(prior, num):
    low, high = prior.low, prior.high
    return low + (torch.rand(num, prior.num_tokens) * (high - low)).long()


COND = torch.tensor([[4.33, 0.0], [math.nan, 2.0], [11.9, math.nan]])

"""Encoders and decoders: a pair per file, the number of axes taken from the data's shape.

``Encoder(shape, *, cond_dim=0, ...)`` has ``out_dim`` and ``grid`` and maps x [B C *S] to
h [B out_dim *grid]; ``Decoder(shape, *, grid, cond_dim=0, ...)`` has ``in_dim`` and maps
z [B in_dim *grid] to the likelihood's parameters [B C_out *S].
"""

from qvae.networks.condition import Conditioner, ConditionFeatures
from qvae.networks.conv import ConvDecoder, ConvEncoder
from qvae.networks.coord import CoordDecoder, CoordEncoder
from qvae.networks.mlp import MLPDecoder, MLPEncoder
from qvae.networks.patch import PatchDecoder, PatchEncoder

__all__ = [
    "ConditionFeatures",
    "Conditioner",
    "CoordDecoder",
    "CoordEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "PatchDecoder",
    "PatchEncoder",
]

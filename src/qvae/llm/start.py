"""Where a small Llama starts from, so that it need not discover that it was told something.

From small random weights every code looks equally at all of 80 ids before it, and the two that
say the time are lost among them; what is asked then shows in the loss of a code only after the
model happens to look there, place by place. So two things are there from the first step, as
values of ordinary weights that training may change:

- a few heads of the first layer look from codes at numbers;
- gates of the first layer open at one place of the picture each, so that what a head fetched can
  mean something else at every place: a place's own map of the number.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from qvae.llm.layers import LlamaBlock
from qvae.llm.tables import SharedTable

__all__ = ["start_to_look"]

_HEADS = 2
_SCORE = 4.0  # of a number before the softmax, when all else is near 0
_GATE = 0.5  # length of a gate's row, which is what random ones have


@torch.no_grad()
def start_to_look(table: SharedTable, layer: LlamaBlock) -> None:
    """Set heads and gates of the first layer; does nothing where codes have one block of ids.

    Args:
        table: the embedding, its weights set; its blocks are moved.
        layer: the first one, its weights set.
    """
    if table.blocks is None:
        return
    places = F.normalize(table.blocks, dim=1)
    if len(table.feature_map):
        code = F.normalize(torch.randn_like(table.blocks[0]), dim=0)
        table.blocks += code * table.blocks.norm(dim=1).mean()
        _look(layer, code, F.normalize(table.feature_map[0], dim=0))
    hidden_dim = layer.down.weight.shape[1]
    layer.gate_up.weight[:hidden_dim] = _GATE * places[torch.arange(hidden_dim) % len(places)]


def _look(layer: LlamaBlock, code: Tensor, number: Tensor) -> None:
    """Let the first heads score what has ``number`` in it, seen from what has ``code`` in it."""
    dim = len(code)
    head_dim = dim // layer.num_heads
    # A normed row has the length sqrt(dim); of a code's three parts one is `code`, of a
    # number's two one is `number`.
    lengths = (dim / 3) ** 0.5 * (dim / 2) ** 0.5
    size = (_SCORE * head_dim**0.5 / lengths) ** 0.5
    for head in range(min(_HEADS, layer.num_heads)):
        # The pair that turns least with the distance: it is a match by what, not by where.
        slow = head * head_dim + head_dim // 2 - 1
        for rows, direction in ((0, code), (dim, number)):
            layer.qkv.weight[rows + slow] = size * direction
            layer.qkv.weight[rows + slow + head_dim // 2] = 0.0

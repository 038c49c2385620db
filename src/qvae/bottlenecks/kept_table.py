"""Tables that start at their data and stay in use: k-means at first, revival later."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qvae.bottlenecks.functional import all_reduce_sum, broadcast_from_main, in_backward
from qvae.bottlenecks.kmeans import kmeans, poorly_served
from qvae.bottlenecks.table import TableQuantizer
from qvae.codes import code_counts, code_sums

__all__ = ["KeptTable"]

_DEAD_BELOW = 0.1
_REVIVE_EVERY = 10
_POOL = 2**14


class KeptTable(TableQuantizer):
    """Count how codes are used, start the table by k-means, and revive codes that fell out of use.

    Paper: k-means start and replacement of unused codes are Zeghidour et al. 2021,
    arXiv:2107.03312, section III-C. Ours differs: a code is dead when its running count is below
    a tenth of the mean of all; it is looked for every 10 steps, and a new code is given time to be
    found; it moves to a recent vector drawn in proportion to its squared distance to its code;
    and whatever running state a subclass has for it is set with it (:meth:`_set_rows`).

    Until there are two vectors for each code, steps are waited for; so long ``is_initialized`` is
    False. All of it is float32 and happens in ``after_step``: ``forward`` only counts. The pool of
    recent vectors is saved in checkpoints and not in the model.

    Args:
        codebook_size: number of rows V, >= 1.
        dim: width of a row, >= 1.
        commitment_weight: weight of ``||z_e - sg(e)||^2``, >= 0.
        usage_decay: decay a step of the running counts, in [0, 1).
        revival: whether codes that fell out of use are set to fresh vectors.
    """

    codebook: Tensor
    ema_counts: Tensor
    num_steps: Tensor
    is_initialized: Tensor
    staged_counts: Tensor
    staged_fill: Tensor
    pool: Tensor
    pool_errors: Tensor
    pool_fill: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        dim: int,
        commitment_weight: float,
        usage_decay: float = 0.99,
        revival: bool = True,
    ) -> None:
        super().__init__(codebook_size=codebook_size, dim=dim, commitment_weight=commitment_weight)
        self.usage_decay = usage_decay
        self.revival = revival
        size = max(2 * codebook_size, min(32 * codebook_size, _POOL))
        # State of the model: saved, and changed in after_step only.
        self.register_buffer("ema_counts", torch.ones(codebook_size))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_initialized", torch.zeros((), dtype=torch.bool))
        # What the forwards since the last step counted, and recent vectors with their errors.
        self.register_buffer("staged_counts", torch.zeros(codebook_size), persistent=False)
        self.register_buffer("pool", torch.zeros(size, dim), persistent=False)
        self.register_buffer("pool_errors", torch.zeros(size), persistent=False)
        for name in ("pool_fill", "staged_fill"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The codebook."""
        return self.codebook

    def _count(
        self,
        z: Float[Tensor, "B *G D"],
        codes: Int[Tensor, "B *G 1"],
        errors: Float[Tensor, "B *G"],
        mask: Bool[Tensor, "B *G"] | None,
    ) -> None:
        """Note the use of codes while training; ``errors`` are squared distances."""
        if self.training:
            _stage(
                z.detach().reshape(-1, self.in_dim),
                codes.reshape(-1),
                errors.detach().reshape(-1),
                None if mask is None else mask.reshape(-1),
                self.pool_fill,
                self.staged_counts,
                self._staged_sums,
                self.pool,
                self.pool_errors,
                self.staged_fill,
            )

    @property
    def _staged_sums(self) -> Float[Tensor, "V D"] | None:
        """Where the sums of the vectors of each code are counted, if a subclass needs them."""
        return None

    @torch.no_grad()
    def after_step(self) -> None:
        """Commit the counts: k-means at first, then the running counts and revival.

        Every process runs the same collectives in the same order, whatever it counted.
        """
        counts = all_reduce_sum(self.staged_counts)
        self._reduce()
        self.pool_fill += self.staged_fill
        self.num_steps += 1
        # One transfer from the device tells all that is branched on.
        facts = (broadcast_from_main(self.pool_fill), self.num_steps, self.is_initialized.long())
        fill, step, is_initialized = torch.stack(facts).tolist()
        if not is_initialized:
            if fill >= 2 * self.codebook_sizes[0]:
                self._initialize(broadcast_from_main(self.pool)[:fill], float(counts.sum()))
                self.pool_fill.zero_()
        else:
            self.ema_counts.lerp_(counts, 1 - self.usage_decay)
            self._update()
            if self.revival and step % _REVIVE_EVERY == 0:
                errors = broadcast_from_main(self.pool_errors)[:fill]
                self._revive(broadcast_from_main(self.pool)[:fill], errors)
                self.pool_fill.zero_()
        self.discard_step()

    def discard_step(self) -> None:
        """Drop the counts."""
        self.staged_counts.zero_()
        self.staged_fill.zero_()

    def _reduce(self) -> None:
        """Sum over the processes what a subclass staged beside the counts."""

    def _update(self) -> None:
        """Move the table by what was staged; one that gradients move stays."""

    def _set_rows(
        self, rows: Int[Tensor, " M"], vectors: Float[Tensor, "M D"], counts: Float[Tensor, " M"]
    ) -> None:
        """Set rows of the table, and what belongs to them."""
        self.codebook.data[rows] = vectors
        self.ema_counts[rows] = counts

    def _initialize(self, vectors: Float[Tensor, "N D"], step_count: float) -> None:
        """Set the table to k-means centres; counts become those of one step."""
        size = self.codebook_sizes[0]
        centres, counts = kmeans(vectors, size, seed=int(self.num_steps))
        every = torch.arange(size, device=vectors.device)
        share = self.ema_counts.new_tensor(step_count / size)
        counts = counts * (size / len(vectors)) * self._on_trial(share)
        self._set_rows(every, centres, counts)
        self.is_initialized.fill_(True)

    def _revive(self, vectors: Float[Tensor, "N D"], errors: Float[Tensor, " N"]) -> None:
        """Set codes that fell out of use to vectors that are far from their codes."""
        share = self.ema_counts.mean()
        dead = torch.nonzero(self.ema_counts < _DEAD_BELOW * share)[:, 0]
        if not len(dead) or not len(vectors):
            return
        fresh = poorly_served(vectors, errors, len(dead), seed=int(self.num_steps))
        dead = dead[: len(fresh)]
        self._set_rows(dead, fresh, self._on_trial(share).expand(len(dead)))

    def _on_trial(self, share: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the count of a new code that gets ``share`` vectors a step if used evenly.

        Unused, it sinks below a tenth of that in the steps that would bring 20 vectors: so a small
        table finds its dead codes at once, and a large one waits until it can tell.
        """
        patience = (20 / share.clamp(min=1e-6)).clamp(min=_REVIVE_EVERY)
        decay = max(self.usage_decay, 1e-3)
        return share * (_DEAD_BELOW * decay**-patience).clamp(max=1.0)


@torch.library.custom_op(
    "qvae::stage", mutates_args=("counts", "sums", "pool", "pool_errors", "staged_fill")
)
def _stage(
    vectors: Tensor,
    codes: Tensor,
    errors: Tensor,
    mask: Tensor | None,
    pool_fill: Tensor,
    counts: Tensor,
    sums: Tensor | None,
    pool: Tensor,
    pool_errors: Tensor,
    staged_fill: Tensor,
) -> None:
    """Count codes, sum their vectors, and put vectors in the pool.

    One operator, so that ``torch.compile`` need not look into it: it branches on data, and asks
    when it runs, not when it is traced, whether this is a repeat.
    """
    if in_backward():
        return
    vectors = vectors.float()
    # The loop refuses a step that is not finite; alone, the class stays clean too.
    is_counted = errors.isfinite() if mask is None else mask & errors.isfinite()
    start, has_all = torch.stack([pool_fill + staged_fill, is_counted.all().long()]).tolist()
    if not has_all:
        vectors, codes, errors = vectors[is_counted], codes[is_counted], errors[is_counted]
    counts += code_counts(codes, len(counts))
    if sums is not None:
        sums += code_sums(vectors, codes, len(sums))
    num = min(len(vectors), len(pool) - start)
    pool[start : start + num] = vectors[:num]
    pool_errors[start : start + num] = errors[:num]
    staged_fill += num

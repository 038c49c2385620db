"""A model with everything that makes resuming hard, and ways to kill what trains it."""

import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from qvae.errors import QvaeError
from qvae.train.checkpoint import latest_checkpoint, prune, save_checkpoint
from qvae.types import Batch, Loss

SETTINGS: dict[str, Any] = {
    "steps": 30,
    "batch_size": 8,
    "accumulate": 2,
    "lr": 1e-2,
    "weight_decay": 0.1,
    "weight_ema": 0.9,
    "clip_factor": 1.05,  # so that it clips
    "eval_every": 7,
    "save_every": 4,
    "log_every": 3,
    "device": "cpu",
    "precision": "float32",
}
CLOCK_FIELDS = ("seconds", "samples_per_second")


class Toy(nn.Module):
    """Autoencoder with noise, dropout, batch norm and a codebook of moving averages."""

    staged_counts: Tensor
    staged_sums: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, *, noise: float = 0.1, has_norm: bool = True, width: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.noise = noise
        self.encoder = nn.Linear(6, width)
        self.norm = nn.BatchNorm1d(width) if has_norm else nn.Identity()
        self.dropout = nn.Dropout(0.1 if noise else 0.0)
        self.hidden = nn.Linear(width, 8)
        self.decoder = nn.Linear(8, 6)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.5, generator=generator)
            elif parameter.ndim == 1:
                parameter.data.zero_()
        sums = torch.randn(5, width, generator=generator)
        self.register_buffer("counts", torch.ones(5))
        self.register_buffer("sums", sums)
        self.register_buffer("staged_counts", torch.zeros(5), persistent=False)
        self.register_buffer("staged_sums", torch.zeros(5, width), persistent=False)

    def forward(self, batch: Batch) -> Loss:
        h = self.norm(self.encoder(batch.x)).float()
        if self.training and self.noise:
            h = h + self.noise * torch.randn_like(h)
        codebook = self.sums / self.counts[:, None]
        codes = torch.cdist(h.detach(), codebook).argmin(1)
        if self.training:
            self.staged_counts.index_add_(0, codes, torch.ones(len(codes)))
            self.staged_sums.index_add_(0, codes, h.detach())
        z = h + (codebook[codes] - h).detach()
        recon = self.decoder(torch.relu(self.hidden(self.dropout(z))))
        nll = (recon - batch.x).square().sum(1)
        penalty = 0.25 * (h - codebook[codes]).square().sum(1)
        return Loss(
            total=(nll + penalty).mean(),
            nll=nll.detach(),
            rate=torch.full_like(nll.detach(), 1.5),
            penalty=penalty.detach(),
            metrics={"used": (torch.bincount(codes, minlength=5) > 0).float().mean()},
        )

    @torch.no_grad()
    def after_step(self) -> None:
        if dist.is_initialized():
            dist.all_reduce(self.staged_counts)
            dist.all_reduce(self.staged_sums)
        self.counts.lerp_(self.staged_counts + 1e-3, 0.1)
        self.sums.lerp_(self.staged_sums, 0.1)
        self.discard_step()

    def discard_step(self) -> None:
        self.staged_counts.zero_()
        self.staged_sums.zero_()


def toy_data(num: int = 50) -> Tensor:
    """The same rows every time."""
    return torch.randn(num, 6, generator=torch.Generator().manual_seed(1))


class Rows:
    """A split over rows."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Any) -> Batch:
        ids = torch.from_numpy(indices)
        return Batch(x=self.rows[ids], ids=ids)


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl without what a clock gave."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK_FIELDS} for row in rows]


def files_of(run: Path, step: int) -> dict[str, bytes]:
    """Read the tensors of a checkpoint, and of the model if it is there."""
    paths = [
        *(run / f"state/step_{step:08d}").glob("*.safetensors"),
        *run.glob("model/*.safetensors"),
    ]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def parts(step: int, num: int = 1000) -> dict[str, dict[str, Tensor]]:
    """Tensors that say of which step they are."""
    return {
        "model": {"weight": torch.full((num,), float(step)), "count": torch.tensor(step)},
        "average": {"weight": torch.full((7, 3), float(step), dtype=torch.bfloat16)},
    }


def save(state: Path, step: int, num: int = 1000) -> None:
    """Write such a checkpoint."""
    save_checkpoint(state, step=step, parts=parts(step, num), facts={"step": step})
    prune(state, keep=2)


def loads(state: Path) -> int:
    """The newest step, after checking that everything in it is of that step."""
    found = latest_checkpoint(state)
    assert found is not None
    assert found.facts == {"step": found.step}
    for part, tensors in parts(found.step).items():
        read = found.tensors(part)
        assert sorted(read) == sorted(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert (read[name] == tensor).all()
    return found.step


def fork(action: Callable[[], object], **env: str) -> int:
    """Start an action in a forked child; return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 frowns at threads
        pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.environ.update(env)
        torch.set_num_threads(1)
        action()
        code = 0
    except QvaeError as error:
        code = error.exit_code
        sys.stderr.write(f"{error}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked(action: Callable[[], object], **env: str) -> int:
    """Run an action in a forked child and return its exit code."""
    return wait(fork(action, **env))


def die() -> None:
    """Be killed as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: forked children do, and sums must have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

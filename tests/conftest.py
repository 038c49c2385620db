import os

import jaxtyping
import pytest
import torch

pytest_plugins = ["cli_work"]

torch.set_num_threads(1)
os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def as_users_call(monkeypatch):
    """Call the package as users do: the tests' own check of types does not come first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

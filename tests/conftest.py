import os

import pytest
import torch

pytest_plugins = ["cli_work"]

torch.set_num_threads(1)
os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)

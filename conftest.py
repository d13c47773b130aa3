"""What holds for tests and examples alike."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pandas as pd
import pytest
import torch

if os.environ.get("SCINFL_COPY_ON_WRITE"):
    pd.options.mode.copy_on_write = True  # as pandas 3 always does


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread in each test: bits depend on the number, and numba (UMAP) sets it for the thread that calls it."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """Close the figures that a test or an example made."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")

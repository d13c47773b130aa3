"""Flower is an extra."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

from scinfl._extras import install_line

TESTED = "1.41"


def require_flower() -> None:
    """Refuse to go on without the Flower that this was tested with; turn its telemetry off.

    Raises
    ------
    ImportError
        If it is missing, or another version.
    """
    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = "none"
    if not found.startswith(f"{TESTED}."):
        msg = f"Expected Flower {TESTED}, found {found}. Install it with `{install_line('flower')}`."
        raise ImportError(msg)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


def quiet_flower() -> None:
    """Let Flower, which must be there, log errors only."""
    from scinfl.flower._flwr import quiet_logs

    quiet_logs()

"""Variables of the environment that a server should not heed."""

from __future__ import annotations

from collections.abc import MutableMapping

_TRUST = {"FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY", "SSLKEYLOGFILE", "SSL_CERT_FILE", "SSL_CERT_DIR"}


def forget_trust(environment: MutableMapping[str, str]) -> None:
    """Drop what changes whom a server answers, where its calls go, or who can read them.

    These are settings of Flower (``FLWR_…``) and of its web server (``UVICORN_…``), proxies (``…_PROXY``),
    ``FORWARDED_ALLOW_IPS``, ``WEB_CONCURRENCY``, ``SSLKEYLOGFILE``, ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.

    Parameters
    ----------
    environment
        For example that of this process; changed in place.
    """
    for name in list(environment):
        upper = name.upper()
        if upper in _TRUST or upper.startswith(("FLWR_", "UVICORN_")) or upper.endswith("_PROXY"):
            del environment[name]

"""Apps that a bundle of this federation names: they explain how a site is started, and do nothing else."""

from __future__ import annotations

from typing import Any, NoReturn

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client_app = ClientApp()
server_app = ServerApp()


def _refuse() -> NoReturn:
    msg = (
        "Expected this message at a site that was started with `scinfl federation site`, found a SuperNode: it would "
        "run whatever a run brings along. Start the site with that command."
    )
    raise RuntimeError(msg)


@client_app.query()
def _query(message: Any, context: Any) -> Any:
    del message, context
    _refuse()


@client_app.train()
def _train(message: Any, context: Any) -> Any:
    del message, context
    _refuse()


@server_app.main()
def _main(grid: Any, context: Any) -> None:
    del grid, context
    _refuse()

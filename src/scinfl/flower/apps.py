"""Server and sites as apps for a Flower that runs already: SuperLink, SuperNodes, or Flower's simulation.

``scinfl federation app`` writes the folder that ``flwr run`` takes; it names these two, and carries no code.
"""

from __future__ import annotations

import logging
from typing import Any

from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._records import from_flower, to_records

client_app = ClientApp()
server_app = ServerApp()

_report = logging.getLogger("flwr").info  # the log that SuperLink and SuperNode show


@server_app.main()
def _main(grid: Any, context: Context) -> None:
    from scinfl.flower.server import run_in_grid

    run_in_grid(grid, context.run_config, report=_report)


@client_app.query()
@client_app.train()
def _answer(carrier: FlowerMessage, context: Context) -> FlowerMessage:
    """Answer in any case: Flower would send the text of an error to the server."""
    try:
        from scinfl.flower.site import NodeConfig, answer_message

        reply = answer_message(NodeConfig.of(context.node_config), from_flower(carrier), report=_report)
    except Exception as error:
        logging.getLogger("flwr").exception("This site could not answer.")
        reply = Message("failed", {"message": f"it met an error of its own ({type(error).__name__}); see its log"})
    return FlowerMessage(to_records(reply), reply_to=carrier)

"""A site's side: its data and its key stay here, and the model is made here.

The connection fetches messages, the mailbox passes them to the training, and the training answers with masked terms and
applies the sums that come back.
"""

from scinfl.flower.site._answer import answer_message
from scinfl.flower.site._node_config import NodeConfig
from scinfl.flower.site._run import list_payload, run_site

__all__ = ["NodeConfig", "answer_message", "list_payload", "run_site"]

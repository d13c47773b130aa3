"""Which parameters leave a site."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from scinfl._checks import first_of, one_of

Share = str | Sequence[str]
RULES = ("all", "meta", "projected")


def check_share(share: Share) -> None:
    """Refuse what is no rule and no list of layers."""
    if isinstance(share, str):
        one_of("share", share, RULES)
    elif not share or not all(isinstance(name, str) for name in share):
        msg = f"Expected `share` to be one of {list(RULES)} or a list of layer names, found {share!r}."
        raise ValueError(msg)


def shared_names(network: nn.Module, share: Share) -> set[str]:
    """Trained parameters of a network that leave the site under a rule.

    ``"all"`` and ``"projected"`` share what is trained, ``"meta"`` the meta learners only, a list the layers that it
    names.

    Raises
    ------
    ValueError
        If nothing would be shared, or one of the weight and bias of a layer without the other.
    """
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    if share in ("all", "projected"):
        return set(trained)
    if share == "meta":
        shared = {name for name in trained if ".meta." in f".{name}"}
        if not shared:
            msg = (
                "Expected a trained meta learner to share, found a frozen one or none. Make the model with "
                "`train_meta=True` (and train it with a key), or share something else."
            )
            raise ValueError(msg)
        return shared
    shared = set()
    for layer in share:
        own = {name for name in trained if name == layer or name.startswith(f"{layer}.")}
        if not own:
            layers = sorted({name.rsplit(".", 1)[0] for name in trained})
            msg = f"Expected `share` to name trained layers, found '{layer}'. Layers are {first_of(layers, 20)}."
            raise ValueError(msg)
        shared |= own
    _check_whole(shared, trained)
    return shared


def _check_whole(shared: set[str], trained: Sequence[str]) -> None:
    """Refuse half a layer: the key turns its weight and bias over together."""
    layers = {name.rpartition(".")[0] for name in shared}
    if left_out := [name for name in trained if name.rpartition(".")[0] in layers and name not in shared]:
        layer = left_out[0].rpartition(".")[0]
        msg = (
            f"Expected `share` to name whole layers, found a part of '{layer}' without {first_of(left_out)}: a layer's "
            f"weight and bias go together. Name '{layer}'."
        )
        raise ValueError(msg)

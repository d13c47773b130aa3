"""Exchange the key of a trained network for another one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scinfl import nn as keyed_nn
from scinfl.privacy import Key

_REFUSED = {
    keyed_nn.SecretProjection: (
        "Expected layers that hold parameters, found the secret projection of `share='projected'`: it is the key "
        "itself, and no parameter makes up for another one. Train a new model with the new key, or keep the old key "
        "for this one."
    ),
    keyed_nn.PooledLinear: (
        "Expected the key scheme 'coordinate' or 'permuted', found 'pooled': its modules were trained at the points of "
        "one key. Train a new model with the new key, better with 'coordinate': 'pooled' does not lock."
    ),
}


def check_rekeyable(network: nn.Module) -> None:
    """Refuse a network whose outputs another key cannot keep.

    Raises
    ------
    ValueError
        If a layer is a secret projection or a pooled one.
    """
    for layer in keyed_nn.keyed_layers(network).values():
        if type(layer) in _REFUSED:
            raise ValueError(_REFUSED[type(layer)])


def rekeyed(
    network: nn.Module, state: Mapping[str, Tensor], old: Key, new: Key, *, model_id: str | None = None
) -> dict[str, Tensor]:
    r"""State with which a network computes under a new key what another state computes under the old one.

    Unfolds the old key and folds the new one, layer by layer, in float64:

    .. math:: (W', b') = \text{lock}_\text{new}(\text{unlock}_\text{old}(W, b))

    Offsets are those of the network's own id under the old key, and of a new id, if there is one, under the new key.
    The meta learners keep their parameters, frozen or trained: the weights make up for what they say at the new
    coordinates. Where the key adds to the bias alone (:class:`scinfl.nn.PermutedLinear`), the bias does.
    """
    twin = copy.deepcopy(network).cpu().double()  # comes without a key
    double = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    keyed_nn.set_key(twin, old.coordinates)
    twin.load_state_dict(keyed_nn.add_offsets(twin, double, sign=-1))
    keyed_nn.set_model_id(twin, None)
    keyed_nn.set_key(twin, old.coordinates)
    plain, before = keyed_nn.unlock(twin, twin.state_dict()), _added_by_permutation(twin)
    keyed_nn.set_key(twin, new.coordinates)
    result, after = keyed_nn.lock(twin, plain), _added_by_permutation(twin)
    for name, added in before.items():
        result[name] = result[name] + added - after[name]
    keyed_nn.set_model_id(twin, model_id)
    keyed_nn.set_key(twin, new.coordinates)
    return keyed_nn.add_offsets(twin, {name: tensor.to(state[name]) for name, tensor in result.items()})


@torch.no_grad()
def _added_by_permutation(network: nn.Module) -> dict[str, Tensor]:
    """What permuted layers add to their biases, in units of the bias, up to what no key changes."""
    added = {}
    for name, layer in keyed_nn.keyed_layers(network).items():
        if isinstance(layer, keyed_nn.PermutedLinear):
            at_zero = layer(torch.zeros(layer.in_features, dtype=torch.float64))
            added[f"{name}.bias"] = at_zero / (1.0 if layer.mix is None else layer.mix)
    return added

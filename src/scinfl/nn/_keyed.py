"""Key the linear layers of any torch network, and undo it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from scinfl.nn._coordinate import CoordinateLinear
from scinfl.nn._keyed_layer import KeyedLayer
from scinfl.nn._keyed_norm import KeyedNorm, keyable_norms
from scinfl.nn._offsets import Coordinates, add_offsets, hidden, parameter_name
from scinfl.nn._permuted import PermutedLinear
from scinfl.nn._pooled import PooledLinear
from scinfl.nn._projection import SecretProjection
from scinfl.nn._table import CoordinateTable, Table

KEY_SCHEMES: dict[str, type[KeyedLayer]] = {
    "coordinate": CoordinateLinear,
    "permuted": PermutedLinear,
    "pooled": PooledLinear,
}
"""Key schemes by name; the published forms are included for comparison with scinfl's own."""

_READS_WEIGHTS_DIRECTLY = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def keyed(
    network: nn.Module,
    scheme: str = "coordinate",
    *,
    layers: Iterable[str] | None = None,
    generator: torch.Generator | None = None,
    **options: float,
) -> nn.Module:
    """Swap linear layers of a network for keyed ones, in place.

    The scheme ``"coordinate"`` keys tables too (:class:`Table`: embeddings, gene-specific read-outs), and stores scales
    and shifts of normalisations behind offsets, once :func:`set_model_id` was called. Parameters take
    over their names and values, so that an optimiser or a state made before stays valid. Until :func:`set_key` is
    called the network computes what it did.

    Parameters
    ----------
    network
        Any torch network.
    scheme
        Name of a key scheme: ``"coordinate"``, or a published form, ``"permuted"`` or ``"pooled"``.
    layers
        Names of the linear layers and tables to key; all by default. Layers inside torch's attention and transformer
        layers are left alone, because torch reads their weights past their ``forward``.
    generator
        Source of the initial parameters of the meta learners.
    options
        Passed to the layers, see :class:`CoordinateLinear`, :class:`PermutedLinear` and :class:`PooledLinear`.

    Returns
    -------
    The network (the keyed layer itself where the network is one linear layer).

    Raises
    ------
    ValueError
        If the scheme or a layer does not exist, or a layer cannot be keyed.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> network = si.nn.keyed(network)
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    >>> network(torch.zeros(4, 5)).shape
    torch.Size([4, 2])
    """
    if scheme not in KEY_SCHEMES:
        msg = f"Expected `scheme` to be one of {sorted(KEY_SCHEMES)}, found {scheme!r}."
        raise ValueError(msg)
    if any(not isinstance(layer, SecretProjection) for layer in keyed_layers(network).values()):
        msg = "Expected a network without keyed layers, found some. Undo with `unkeyed` first."
        raise ValueError(msg)
    linears = _linear_layers(network)
    tables = _tables(network) if scheme == "coordinate" else {}
    norms = keyable_norms(network) if scheme == "coordinate" else {}
    wanted = {*linears, *tables, *norms} if layers is None else set(layers)
    if missing := wanted - {*linears, *tables, *norms}:
        msg = f"Expected `layers` among the linear layers {sorted({*linears, *tables})}, found {sorted(missing)}."
        raise ValueError(msg)
    if not wanted & {*linears, *tables}:
        msg = "Expected at least one linear layer to key, found none."
        raise ValueError(msg)
    chosen = {name: linear for name, linear in linears.items() if name in wanted}
    layers_by_name = KEY_SCHEMES[scheme].build(chosen, generator, **options)
    swap: dict[nn.Module, nn.Module] = {linear: layers_by_name[name] for name, linear in chosen.items()}
    for name, table in tables.items():
        if name in wanted:
            swap[table] = CoordinateTable(table, generator=generator, **options)  # type: ignore[arg-type]
    swap |= {norm: KeyedNorm.of(norm) for name, norm in norms.items() if name in wanted}
    return _swapped(network, swap)


def unkeyed(network: nn.Module) -> nn.Module:
    """Swap keyed layers back for linear ones that hold the same parameters, in place.

    What remains is the network without its modules; secret projections stay, since they have no parameters. To keep
    what a network with a key computes, load ``unlock(network, network.state_dict())`` into the result.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.nn.keyed(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    >>> type(si.nn.unkeyed(network)[0]).__name__
    'Linear'
    """
    swap = _plain_norms(network)
    for layer in keyed_layers(network).values():
        if isinstance(layer, SecretProjection):
            continue  # there are no parameters to go back to
        if isinstance(layer, CoordinateTable):
            swap[layer] = layer.plain_table()
            continue
        layer.rename(None)  # in the precision that it computes in
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight, linear.bias = layer.weight, layer.bias
        swap[layer] = linear
    return _swapped(network, swap)


def projected(network: nn.Module, layer: str) -> nn.Module:
    """Swap a linear layer of a network for a :class:`SecretProjection`, in place.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> list(si.nn.projected(network, "0").state_dict())  # the first layer has nothing to send
    ['2.weight', '2.bias']
    """
    linears = _linear_layers(network)
    if layer not in linears:
        msg = f"Expected `layer` among the linear layers {sorted(linears)}, found {layer!r}."
        raise ValueError(msg)
    return _swapped(network, {linears[layer]: SecretProjection(linears[layer])})


def folded(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias that a linear layer computes with, its key folded in; ``None`` where it has none.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> layer = si.nn.keyed(torch.nn.Linear(3, 2))
    >>> si.nn.set_key(layer, si.privacy.Key.generate().coordinates)
    >>> weight, bias = si.nn.folded(layer)
    >>> x = torch.ones(4, 3)
    >>> torch.allclose(layer(x), x @ weight.T + bias, atol=1e-6)
    True
    """
    if isinstance(layer, KeyedLayer):
        return layer.folded()
    return (layer.weight, layer.bias) if isinstance(layer, nn.Linear) else None


def keyed_layers(network: nn.Module) -> dict[str, KeyedLayer]:
    """Keyed layers of a network by name.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.nn.keyed(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    >>> list(si.nn.keyed_layers(network))
    ['0', '2']
    """
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, KeyedLayer)}


def at_boundary(network: nn.Module) -> bool:
    """Whether the plain network can be trained in place of the keyed one, because :func:`lock` is exact.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> si.nn.at_boundary(si.nn.keyed(torch.nn.Linear(5, 3)))
    True
    >>> si.nn.at_boundary(si.nn.keyed(torch.nn.Linear(5, 3), train_meta=True))
    False
    """
    return all(layer.at_boundary for layer in keyed_layers(network).values())


def set_key(network: nn.Module, coordinates: Coordinates) -> None:
    """Give all keyed layers of a network their secret coordinates.

    Parameters
    ----------
    network
        Network with keyed layers.
    coordinates
        Maps a label and a shape to secret numbers in [−1, 1), always the same: ``Key.coordinates``.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.nn.keyed(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    >>> x = torch.ones(1, 5)
    >>> before = network(x)
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    >>> torch.allclose(network(x), before)
    False
    """
    layers = keyed_layers(network)
    if not layers:
        msg = "Expected a network with keyed layers, found none. Make them with `keyed` first."
        raise ValueError(msg)
    for name, module in hidden(network).items():
        module.set_coordinates(coordinates, name)  # type: ignore[operator]


def clear_key(network: nn.Module) -> None:
    """Make all keyed layers of a network forget their coordinates.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.nn.keyed(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    >>> si.nn.clear_key(network)
    >>> network[0].is_set
    False
    """
    for module in hidden(network).values():
        module.clear_coordinates()  # type: ignore[operator]


def lock(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the state of the plain network into that of the keyed one (which must have its key).

    Entries that belong to no layer, table or normalisation of the scheme ``"coordinate"`` pass unchanged. Locking is
    linear in the parameters but for constant shifts and offsets, so it commutes with means whose weights add up to one:
    averages of locked states are locked averages.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> plain = torch.nn.Linear(5, 3)
    >>> network = si.nn.keyed(torch.nn.Linear(5, 3))
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    >>> _ = network.load_state_dict(si.nn.lock(network, plain.state_dict()), strict=False)
    >>> x = torch.ones(4, 5)
    >>> torch.allclose(network(x), plain(x), atol=1e-5)
    True
    """
    return _transformed(network, state, "lock")


def unlock(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the state of the keyed network (which must have its key) into that of the plain one: inverse of `lock`.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.nn.keyed(torch.nn.Linear(5, 3))
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    >>> plain = si.nn.unlock(network, network.state_dict())
    >>> torch.allclose(si.nn.lock(network, plain)["weight"], network.weight, atol=1e-6)
    True
    """
    return _transformed(network, state, "unlock")


def _transformed(network: nn.Module, state: Mapping[str, Tensor], direction: str) -> dict[str, Tensor]:
    layers = keyed_layers(network)
    own = {parameter_name(name, what) for name in layers for what in ("weight", "bias")}
    result = add_offsets(network, state, sign=1 if direction == "lock" else -1, but=own)
    for name, layer in layers.items():
        of_weight, of_bias = parameter_name(name, "weight"), parameter_name(name, "bias")
        if of_weight in state:
            result[of_weight], bias = getattr(layer, direction)(state[of_weight], state.get(of_bias))
            if bias is not None:
                result[of_bias] = bias
    return result


def with_plain_norms(network: nn.Module) -> nn.Module:
    """Swap keyed normalisations back for plain ones, in place; layers and tables stay keyed."""
    return _swapped(network, _plain_norms(network))


def _plain_norms(network: nn.Module) -> dict[nn.Module, nn.Module]:
    return {module: module.plain_norm() for module in network.modules() if isinstance(module, KeyedNorm)}


def _linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Plain linear layers, by name; subclasses are left alone, they may compute something else."""
    readers = [name for name, module in network.named_modules() if isinstance(module, _READS_WEIGHTS_DIRECTLY)]
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) is nn.Linear
        and isinstance(module.weight, nn.Parameter)
        and not any(name.startswith(f"{parent}.") or not parent for parent in readers)
    }


def _tables(network: nn.Module) -> dict[str, Table]:
    return {name: module for name, module in network.named_modules() if type(module) is Table}


def _swapped(network: nn.Module, swap: Mapping[nn.Module, nn.Module]) -> nn.Module:
    if network in swap:
        return swap[network]
    for parent in network.modules():
        for name, child in list(parent._modules.items()):  # a shared layer has several names
            if child is not None and child in swap:
                setattr(parent, name, swap[child])
    for old, new in swap.items():
        new.train(old.training)
    return network

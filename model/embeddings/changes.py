"""What has changed between two versions of a model's published weights: an incremental export.

A day changes few rows of large tables. `changes` of an older and a newer version, applied to the older one by
`applied`, are the newer one to the bit. As a file they are safetensors; see docs/tables.md for the format.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.embeddings.table_state import by_table_and_id

Weights = Mapping[str, Tensor]


def _collections(weights: Weights) -> list[str]:
    """Names, with a dot behind, of the dynamic collections: `<name>.ids`, `.starts` and `.vectors`."""
    return [name.removesuffix("starts") for name in weights if name.endswith(".starts")]


def _bits(tensor: Tensor) -> Tensor:
    """What is compared: zeros of two signs differ, NaN are equal to themselves."""
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(sizes[tensor.element_size()]) if tensor.is_floating_point() else tensor


def _tables(weights: Weights, name: str) -> Tensor:
    starts = weights[f"{name}starts"]
    return torch.arange(len(starts) - 1).repeat_interleave(starts.diff())


def _places(ids: Tensor, starts: Tensor, others: Tensor, other_starts: Tensor) -> Tensor:
    """Place of each of `ids` among `others`, both sorted within their tables, or -1."""
    places = []
    for table in range(len(starts) - 1):
        asked = ids[starts[table] : starts[table + 1]]
        keys = others[other_starts[table] : other_starts[table + 1]]
        place = torch.searchsorted(keys, asked)
        held = keys[place.clamp(max=len(keys) - 1)] == asked if len(keys) else torch.zeros_like(asked).bool()
        places.append(torch.where(held, place + other_starts[table], -1))
    return torch.cat(places)


def changes(older: Weights, newer: Weights) -> dict[str, Tensor]:
    """What makes the newer version of the older one.

    Args:
        older: Published weights.
        newer: Later ones of the same model.

    Returns:
        Of each dynamic collection `gone_ids` and `gone_tables` of keys that lost their rows, and `ids`,
        `tables` and `vectors` of those that are new or have learned; of other tensors, those that differ:
        the `rows` that do with their `values`, or a tensor as it is where most of it does.

    Raises:
        ValueError: They are not of one model.
    """
    if older.keys() != newer.keys():
        raise ValueError(f"the weights {sorted(older.keys() ^ newer.keys())} are of one version alone")
    out: dict[str, Tensor] = {}
    names = _collections(newer)
    for name in names:
        keys = [(one[f"{name}ids"], one[f"{name}starts"]) for one in (older, newer)]
        place = _places(*keys[1], *keys[0])
        vectors, before = newer[f"{name}vectors"], older[f"{name}vectors"]
        is_same = torch.zeros(len(place), dtype=torch.bool)
        held = place >= 0
        is_same[held] = (_bits(vectors[held]) == _bits(before[place[held]])).all(1)
        is_gone = _places(*keys[0], *keys[1]) < 0
        out[f"{name}gone_ids"] = keys[0][0][is_gone]
        out[f"{name}gone_tables"] = _tables(older, name)[is_gone]
        out[f"{name}ids"] = keys[1][0][~is_same]
        out[f"{name}tables"] = _tables(newer, name)[~is_same]
        out[f"{name}vectors"] = vectors[~is_same]
    for name, tensor in newer.items():
        if not name.startswith(tuple(names)):
            out |= _changed(name, older[name], tensor)
    return out


def _changed(name: str, older: Tensor, newer: Tensor) -> dict[str, Tensor]:
    if older.shape != newer.shape or older.dtype != newer.dtype:
        raise ValueError(
            f"{name} is {older.dtype} {tuple(older.shape)} in one version and {newer.dtype} "
            f"{tuple(newer.shape)} in the other"
        )
    differs = _bits(older) != _bits(newer)
    if not differs.any():
        return {}
    rows = differs.flatten(1).any(1).nonzero().squeeze(1) if newer.dim() == 2 else None
    if rows is None or 2 * len(rows) > len(newer):
        return {name: newer}
    return {f"{name}.rows": rows, f"{name}.values": newer[rows]}


def applied(older: Weights, changed: Weights) -> dict[str, Tensor]:
    """The newer version, of the older one and what `changes` gave."""
    out = dict(older)
    names = _collections(older)
    for name in names:
        tables = _tables(older, name)
        ids = older[f"{name}ids"]
        left = torch.cat([changed[f"{name}gone_ids"], changed[f"{name}ids"]])
        of_left = torch.cat([changed[f"{name}gone_tables"], changed[f"{name}tables"]])
        order = by_table_and_id(left, of_left)
        every = torch.arange(len(older[f"{name}starts"]))
        starts = torch.searchsorted(of_left[order].contiguous(), every)
        stays = _places(ids, older[f"{name}starts"], left[order], starts) < 0
        ids = torch.cat([ids[stays], changed[f"{name}ids"]])
        tables = torch.cat([tables[stays], changed[f"{name}tables"]])
        order = by_table_and_id(ids, tables)
        out[f"{name}ids"] = ids[order]
        out[f"{name}starts"] = torch.searchsorted(tables[order].contiguous(), every)
        out[f"{name}vectors"] = torch.cat([older[f"{name}vectors"][stays], changed[f"{name}vectors"]])[order]
    for name, tensor in changed.items():
        if name.startswith(tuple(names)) or name.endswith(".values"):
            continue
        if name.endswith(".rows"):
            of = name.removesuffix(".rows")
            out[of] = older[of].index_copy(0, tensor, changed[f"{of}.values"])
        else:
            out[name] = tensor
    return out

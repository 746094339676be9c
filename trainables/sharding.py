"""A model's weights, their gradients and the optimiser's state in equal shares over the workers of a gang.

torch's fully_shard: before a unit computes, its weights are gathered from all workers, and each worker keeps of their
gradients, summed over all, what belongs to its own share. Every tensor is cut by rows, so a worker's share holds rows
of all of them. What leaves a gang (states, checkpoints) is whole, as one worker would have written it.

Source: ZeRO stage 3, Rajbhandari et al. 2020, arXiv:1910.02054; FSDP, Zhao et al. 2023, arXiv:2304.11277.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.unit import Unit


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """Leave of `module`, in place, this worker's share; all workers must call.

    Args:
        module: whole, and the same on all workers but for rounding: the first one's values are what is shared out.
        device: where it lies.

    Returns:
        Its form: a copy without weights, from which `whole` makes whole ones.

    Raises:
        ValueError: if a weight has no rows (see `check_shardable`).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # half a second, which other processes need not spend

    check_shardable(module)
    form = _form(module)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor, src=0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in [part for part in module.modules() if isinstance(part, Unit) and part is not module]:
        fully_shard(unit, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return form


def check_shardable(module: nn.Module) -> None:
    """Refuse weights that cannot be cut by rows.

    Raises:
        ValueError: naming the first one.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise ValueError(
                f"{type(module).__name__} cannot be sharded, as its weight {name} is a single number without rows: "
                "give it the shape (1,), or type cluster.sharding=none"
            )


def is_share(tensor: Any) -> bool:
    """Whether a tensor is torch's DTensor; asked by its method, as importing the class takes half a second."""
    return hasattr(tensor, "full_tensor")


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights of a module are shared out."""
    return any(map(is_share, module.parameters()))


def whole_tensor(tensor: Any) -> Tensor:
    """All rows of a tensor; where it is a share all workers must call."""
    together: Tensor = tensor.full_tensor() if is_share(tensor) else tensor
    return together


def whole(module: nn.Module, form: nn.Module, part: str = "") -> nn.Module:
    """A copy of a sharded module, or of a part of it, with all weights; all workers must call.

    Args:
        module: sharded.
        form: what `shard` returned of it.
        part: dotted name of a submodule; all of it where empty.
    """
    copied = copy.deepcopy(form.get_submodule(part))
    state = module.get_submodule(part).state_dict()
    # what is gathered is new, but a buffer would be the module's own
    gathered = {name: whole_tensor(value) if is_share(value) else value.clone() for name, value in state.items()}
    copied.load_state_dict(gathered, assign=True)
    return copied


def as_sharded(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of whole tensors the shares that this worker keeps, where those of the same name in `like` are sharded."""
    return {name: _share(tensor, like.get(name)) for name, tensor in values.items()}


def _share(tensor: Tensor, like: Any) -> Tensor:
    if not is_share(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # every worker has read the whole: none need be sent
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _form(module: nn.Module) -> nn.Module:
    """A copy whose parameters have no memory; buffers, of which some are in no state_dict, are copied."""
    without: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, without)

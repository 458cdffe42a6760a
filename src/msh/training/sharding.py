"""Fully sharded training: each process keeps its share of what trains, of its gradients and the optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Adam, AdamW, Optimizer

from msh.compat import own_parameters
from msh.training.module import TaskModule
from msh.training.ranks import from_rank_zero


class ShardedPart(nn.Module):
    """What a group of tasks trains, in shards: whole only from a forward pass to the end of the backward pass.

    Each parameter is cut along its first dimension. It is gathered for the forward pass; in the backward pass its
    gradient is summed up over ranks, and each keeps its share. Buffers are not sharded.

    Args:
        part: whose parameters train.
        compute: (inputs, task) to outputs, with these parameters.
        mesh: the processes.
    Source: Zhao et al. 2023, PyTorch FSDP; in torch, FSDP2.
    """

    def __init__(self, part: nn.Module, compute: Callable[[Tensor, str], Tensor], mesh: DeviceMesh) -> None:
        super().__init__()
        self._compute = (compute,)  # in a tuple: a network is no part of this module
        numbers = {parameter: str(number) for number, parameter in enumerate(part.parameters())}
        self._places = [
            (module, name, numbers[parameter])
            for module in part.modules()
            for name, parameter in own_parameters(module).items()
            if parameter is not None
        ]
        for parameter, number in numbers.items():
            self.register_parameter(number, parameter)
        fully_shard(self, mesh=mesh, reshard_after_forward=False)
        self._shards = cast(dict[str, DTensor], dict(own_parameters(self)))
        self._put(self._shards)

    def forward(self, inputs: Tensor, task: str) -> Tensor:
        """A task's outputs (batch, outputs) for its inputs (batch, *input shape)."""
        self._put(own_parameters(self))
        try:
            outputs: Tensor = self._compute[0](inputs, task)
        finally:
            self._put(self._shards)
        return outputs

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the parameters are whole, on every rank; what is written to them stays, as each rank's share."""
        found = self.gather()
        try:
            yield
        finally:
            with torch.no_grad():
                for number, shard in self._shards.items():
                    shard.to_local().copy_(share_of(found[number], shard))
            self._put(self._shards)

    @torch.no_grad()
    def gather(self) -> dict[str, nn.Parameter]:
        """Make the parameters whole, on every rank, as if they had never been sharded."""
        cast(FSDPModule, self).reshard()
        found = {
            number: nn.Parameter(shard.full_tensor(), shard.requires_grad) for number, shard in self._shards.items()
        }
        self._put(found)
        return found

    def drop(self) -> None:
        """Leave parameters of no value: without the other ranks, who may be gone, there is nothing to gather."""
        self._put({number: nn.Parameter(torch.full(s.shape, torch.nan)) for number, s in self._shards.items()})

    def _put(self, parameters: Mapping[str, Tensor | None]) -> None:
        for module, name, number in self._places:
            own_parameters(module)[name] = cast(nn.Parameter, parameters[number])


class ShardedStrategy(DDPStrategy):
    """Processes as DDP has them, each with a shard of what trains.

    Checkpoints hold whole tensors, as those of one process do: a fit can go on with other devices.
    """

    def configure_ddp(self) -> None:
        """Shard what trains, as rank 0 has it."""
        module = self._module
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for group, part in module.groups().items():
            part.load_state_dict(from_rank_zero(module, part.state_dict()))
            sharded = ShardedPart(part, module.network, mesh)
            module.context.sharded |= dict.fromkeys(group, sharded)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Without fused kernels where torch has none for shards."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if not isinstance(optimizer, Adam | AdamW):
                for group in optimizer.param_groups:
                    group.update({"fused": False} if group.get("fused") else {})

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, whole."""
        with self._module.whole():
            return super().lightning_module_state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state, whole."""
        return _of_each_parameter(super().optimizer_state(optimizer), lambda _, tensor: whole_tensor(tensor))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take each rank's share of what `optimizer_state` gave."""
        states = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states.append(_of_each_parameter(state, partial(_shard_like_one_of, parameters)))
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def teardown(self) -> None:
        """After a fit that failed, do not move shards as if they were tensors."""
        for part in dict.fromkeys(self._module.context.sharded.values()):
            part.drop()
        self._module.context.sharded = {}
        super().teardown()

    @property
    def _module(self) -> TaskModule:
        module = self.lightning_module
        assert isinstance(module, TaskModule)
        return module


def share_of(tensor: Tensor, shard: DTensor) -> Tensor:
    """This rank's share of a whole tensor, cut as a shard of the same shape is."""
    parts, rank = tensor.chunk(shard.device_mesh.size()), shard.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor[:0]


def shard_like(tensor: Tensor, parameter: DTensor) -> Tensor:
    """What an optimizer keeps of a parameter, sharded as this is; what has another shape (a count) as it is."""
    if tensor.shape != parameter.shape:
        return tensor
    local = share_of(tensor, parameter).to(parameter.device).clone()
    return DTensor.from_local(
        local, parameter.device_mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=parameter.stride()
    )


def _shard_like_one_of(parameters: Sequence[DTensor], number: int, tensor: Tensor) -> Tensor:
    return shard_like(tensor, parameters[number])


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor gathered from all ranks, where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _of_each_parameter(state: Mapping[str, Any], change: Callable[[int, Tensor], Tensor]) -> dict[str, Any]:
    """An optimizer's state dict with its tensors changed, by the number of the parameter that they belong to."""
    changed = {
        number: {key: change(number, value) if isinstance(value, Tensor) else value for key, value in kept.items()}
        for number, kept in state["state"].items()
    }
    return {**state, "state": changed}

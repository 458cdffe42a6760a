"""Fully sharded training: each process keeps a share of parameters, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    """Shard the parameters that a group of tasks trains.

    Each parameter is cut along its first dimension. It is gathered for the forward pass and stays whole until the
    backward pass has summed its gradient over ranks; then each rank keeps its share. Buffers are not sharded.

    Args:
        part: module with the parameters that train.
        compute: (inputs, task) to outputs, with these parameters.
        mesh: the processes.
    Source: Zhao et al. 2023, PyTorch FSDP; in torch, FSDP2.
    """

    def __init__(self, part: nn.Module, compute: Callable[[Tensor, str], Tensor], mesh: DeviceMesh) -> None:
        super().__init__()
        self._compute = (compute,)  # in a tuple, so that the network is no submodule
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
        """Compute a task's outputs (batch, outputs) from its inputs (batch, *input shape)."""
        self._put(own_parameters(self))
        try:
            outputs: Tensor = self._compute[0](inputs, task)
        finally:
            self._put(self._shards)
        return outputs

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Gather the parameters on every rank inside the context; each rank keeps its share of changes made there."""
        whole = self.gather()
        try:
            yield
        finally:
            with torch.no_grad():
                for number, shard in self._shards.items():
                    shard.to_local().copy_(share_of(whole[number], shard))
            self._put(self._shards)

    @torch.no_grad()
    def gather(self) -> dict[str, nn.Parameter]:
        """Make the parameters whole on every rank, as before sharding; return them by number."""
        cast(FSDPModule, self).reshard()
        whole = {
            number: nn.Parameter(shard.full_tensor(), shard.requires_grad) for number, shard in self._shards.items()
        }
        self._put(whole)
        return whole

    def drop(self) -> None:
        """Set the parameters to NaN: other ranks may be gone, so that they cannot be gathered."""
        self._put({number: nn.Parameter(torch.full(s.shape, torch.nan)) for number, s in self._shards.items()})

    def _put(self, parameters: Mapping[str, Tensor | None]) -> None:
        for module, name, number in self._places:
            own_parameters(module)[name] = cast(nn.Parameter, parameters[number])


class ShardedStrategy(DDPStrategy):
    """DDP's processes, each with a shard of every parameter that trains.

    Checkpoints hold whole tensors, as with one process: a fit can resume on other devices.
    """

    def configure_ddp(self) -> None:
        """Shard rank 0's parameters."""
        module = self._module
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for group, part in module.groups().items():
            part.load_state_dict(from_rank_zero(module, part.state_dict()))
            sharded = ShardedPart(part, module.network, mesh)
            module.context.sharded |= dict.fromkeys(group, sharded)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Set up optimizers, without fused kernels where torch has none for shards."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if not isinstance(optimizer, Adam | AdamW):
                for group in optimizer.param_groups:
                    group.update({"fused": False} if group.get("fused") else {})

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's state, with whole tensors."""
        with self._module.whole():
            return super().lightning_module_state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return an optimizer's state, with whole tensors."""
        return _map_state(super().optimizer_state(optimizer), lambda _, tensor: whole_tensor(tensor))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's share of the states that `optimizer_state` returned."""

        def shares(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            return _map_state(state, lambda number, tensor: shard_like(tensor, parameters[number]))

        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": [shares(*pair) for pair in pairs]})

    def teardown(self) -> None:
        """Drop the shards of a failed fit, which cannot be moved like tensors."""
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
    """Cut this rank's share from a whole tensor (rows, *rest), as torch cuts `shard`: (share of the rows, *rest)."""
    parts, rank = tensor.chunk(shard.device_mesh.size()), shard.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor[:0]


def shard_like(tensor: Tensor, parameter: DTensor) -> Tensor:
    """Shard a tensor of an optimizer's state like its parameter; one of another shape (a count) stays as it is."""
    if tensor.shape != parameter.shape:
        return tensor
    local = share_of(tensor, parameter).to(parameter.device).clone()
    return DTensor.from_local(
        local, parameter.device_mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=parameter.stride()
    )


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor from all ranks, if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _map_state(state: Mapping[str, Any], change: Callable[[int, Tensor], Tensor]) -> dict[str, Any]:
    """Replace the tensors in an optimizer's state dict by `change(number of the parameter, tensor)`."""
    changed = {
        number: {key: change(number, value) if isinstance(value, Tensor) else value for key, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": changed}

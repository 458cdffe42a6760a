"""Learn tasks from pretrained weights without subnetworks: with LoRA, all weights, or heads alone, in msh's fits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from safetensors.torch import save
from torch import nn

from msh.subnetworks.tensors import name_tensors
from msh.tasks.task import SplitName
from msh.training.build import add_task, build_backbone
from msh.training.config import RunConfig
from msh.training.fitting import evaluate_tasks, run_fit
from msh.training.plan import Fit
from msh.training.prepare import prepare
from msh.training.shared import SharedModule, SharedNetwork


@dataclass(frozen=True)
class Lora:
    """A kind of adapter.

    Attributes:
        share: its size is as near to this share of the weights that subnetworks can own as a rank allows.
        norms: each task also trains copies of the normalization layers.
    """

    share: float
    norms: bool = False

    def __str__(self) -> str:
        return f"LoRA of {self.share:.0%}".replace("%", " %") + ", own normalization" * self.norms


def without_subnetworks(config: RunConfig, way: str, lora: Lora | None, folder: Path) -> dict[str, Any]:
    """Learn a run's tasks, one after another.

    Args:
        config: the run's; its backbone has weights.
        way: "full": all weights, in a network per task; "full-one": all weights, in one network for all; others: the
            backbone is frozen.
        lora: adapter of each task.
        folder: of the run.
    Returns:
        Validation scores, rows of test scores after each task, trained values and bytes per task, bytes in all, and
        CPU seconds.
    """
    start = time.process_time()
    tasks, networks = prepare(config).tasks, dict[str, SharedModule]()
    record: dict[str, Any] = {"val": [], "matrix": [], "trained": [], "bytes": []}
    for name, task in tasks.items():
        if way == "full" or not networks:
            network = SharedNetwork(build_backbone(config, tasks))
            prunable = name_tensors(network.backbone).prunable
            if not way.startswith("full"):
                freeze(network.backbone, norms=lora is not None and lora.norms)
        add_task(network, task, config)
        if lora is not None:
            network.backbone = with_adapter(network.backbone, name, prunable, lora)
        network.train_only([name])
        networks[name] = SharedModule(network, tasks, instantiate(config.optimizer), config.seed)
        fit = Fit(name, name, config.trainer.max_epochs, prunes=False, last=True)
        run_fit(networks[name], fit, [name], config, folder, folder / "checkpoints" / name, [], [])
        record["trained"].append(sum(p.numel() for p in network.part([name]).parameters() if p.requires_grad))
        record["bytes"].append(saved(network, name, way == "full", folder))
        record["val"] += evaluate({name: networks[name]}, "val", config, folder)
        scores = evaluate(networks, "test", config, folder)
        record["matrix"].append([*scores, *[None] * (len(tasks) - len(scores))])
    backbone_bytes = 0 if way == "full" else Path(str(config.backbone["weights"])).stat().st_size
    in_all = sum(record["bytes"]) + backbone_bytes
    return record | {"bytes_in_all": in_all, "seconds": time.process_time() - start}


def evaluate(networks: Mapping[str, SharedModule], split: SplitName, config: RunConfig, folder: Path) -> list[float]:
    """Evaluate each task with its network and its adapter."""
    scores = []
    for name, module in networks.items():
        if hasattr(module.network.backbone, "set_adapter"):
            module.network.backbone.set_adapter(name)
        scores.append(evaluate_tasks(module, [name], split, config, folder)[name])
    return scores


def freeze(backbone: nn.Module, norms: bool) -> None:
    """Freeze all parameters and, unless tasks train their own norms, the statistics of batch normalization."""
    backbone.requires_grad_(False)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and not norms:
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,assignment,misc]


def with_adapter(backbone: nn.Module, name: str, prunable: Sequence[str], lora: Lora) -> nn.Module:
    """Add a task's LoRA to the layers in which subnetworks own weights, and make it the active one.

    Args:
        backbone: frozen; one of peft's models if earlier tasks have adapters.
        name: the task's.
        prunable: names of the weights in these layers.
        lora: its kind.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(backbone, PeftModel):
        backbone.add_adapter(name, next(iter(backbone.peft_config.values())))
        backbone.set_adapter(name)
        return backbone
    weights = [backbone.get_parameter(key) for key in prunable]
    per_rank = sum(weight.numel() // len(weight) + len(weight) for weight in weights)
    rank = max(1, round(lora.share * sum(weight.numel() for weight in weights) / per_rank))
    layers = [key.removesuffix(".weight") for key in prunable]
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    own = [key for key, part in backbone.named_modules() if isinstance(part, kinds)] if lora.norms else None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, modules_to_save=own)
    return get_peft_model(cast(Any, backbone), config, adapter_name=name)


def saved(network: SharedNetwork, name: str, alone: bool, folder: Path) -> int:
    """Save a task's head, and its adapter or its network if it has one of its own; return the number of bytes."""
    tensors = network.heads[name].state_dict()
    if alone:
        tensors |= network.backbone.state_dict()
    size = len(save({key: tensor.contiguous() for key, tensor in tensors.items()}))
    if hasattr(network.backbone, "save_pretrained"):
        cast(Any, network.backbone).save_pretrained(folder / "adapters", selected_adapters=[name])
        size += (folder / "adapters" / name / "adapter_model.safetensors").stat().st_size
    return size

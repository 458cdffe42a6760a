"""Networks with frozen tasks, made without training."""

import torch

from msh.recipes import build
from msh.subnetworks import Budget, MultiSubnetwork, Units, plan_units, prune, trace_units


def frozen(backbone, tasks, granularity="weight", density=0.2):
    """Make a network whose tasks, from `build_task`, own random weights; its files can be loaded without data.

    Args:
        backbone: recipe.
        tasks: from `build_task`.
        granularity: "weight", or of units.
        density: of each task.
    """
    torch.manual_seed(0)
    network = MultiSubnetwork(build(backbone), recipe=backbone)
    features, shape = network.backbone.features, network.backbone.input_shape
    tasks = list(tasks)
    units = None if granularity == "weight" else Units(trace_units(network, granularity))
    plan = plan_units(units.graph, {task.name: Budget(density=density) for task in tasks}) if units else {}
    for task in tasks:
        parts = {"head": task.head_recipe(features), "stem": task.stem_recipe(shape)}
        recipe = {**parts, **task.data_recipe(), "evaluation": {"batch_size": 8, "flush_denormal": True}}
        head, stem = task.build_head(features), task.build_stem(shape)
        network.add_task(task.name, head, stem, granularity=granularity, recipe=recipe)
        network.begin(task.name, generator=torch.Generator().manual_seed(0))
        counts = {name: int(density * weight.numel()) for name, weight in network.weights()}
        prune(network, task.name, plan.get(task.name, counts), **({"granularity": units} if units else {}))
        network.compact(task.name)
        network.freeze(task.name)
    return network.eval()

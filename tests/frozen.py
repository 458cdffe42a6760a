"""Networks with frozen tasks, made without training."""

import numpy as np
import pandas as pd
import torch
from PIL import Image

from msh.files.state_file import save_network
from msh.recipes import build
from msh.subnetworks import Budget, MultiSubnetwork, Units, plan_units, prune, trace_units
from msh.tasks import RawData, Split, build_task
from msh.tasks.images import image_folder
from msh.tasks.tables import table
from msh.tasks.tokens import Texts


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


def network_of_each_kind(folder):
    """Write a network file with a task for each kind of input, and the images' folder; return the file's path.

    Args:
        folder: for the files.
    """
    generator = torch.Generator().manual_seed(0)
    inputs, rows = torch.randn(60, 4, generator=generator), torch.arange(60)
    split = Split(inputs, rows % 3)
    arrays = build_task("arrays", RawData("classification", split, split, 3, None, ("low", "mid", "high")))
    values = Split(inputs, torch.randn(60, 1, generator=generator, dtype=torch.float64))
    regression = build_task("regression", RawData("regression", values, values, 1, None, ()))
    words = Texts([f"word{i % 9} word{i % 4}" for i in range(60)], vocabulary=20, length=5)
    labels = Split(rows, rows % 2)
    stem = {"_target_": "msh.tasks.stems.TokenStem", "width": 4, "pooling": "mean"}
    texts = build_task("texts", RawData("classification", labels, labels, 2, words, ("no", "yes")), stem=stem)
    numbers = np.random.default_rng(0)
    for name in ("crow", "wren"):
        (folder / "birds" / name).mkdir(parents=True)
        for i in range(12):
            pixels = numbers.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "birds" / name / f"{i}.png")
    images = build_task("birds", image_folder(str(folder / "birds"), size=6))
    frame = pd.DataFrame({"rooms": [i % 7 for i in range(60)], "heat": ["gas", "oil"] * 30})
    frame["sold"] = [("no", "yes")[i % 5 > 2] for i in range(60)]
    frame.to_csv(folder / "flats.csv", index=False)
    flats = build_task("flats", table(str(folder / "flats.csv"), target="sold"))
    backbone = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 16, "depth": 2}
    save_network(folder / "network.safetensors", frozen(backbone, [arrays, regression, texts, images, flats]))
    return folder / "network.safetensors"

"""Check that an architecture works in every respect that docs/compatibility.md lists."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional

from compat.architectures import Architecture
from msh.backbones.named import Named
from msh.files.state_file import save_network
from msh.inference.rebuilding import rebuild_network
from msh.recipes import build
from msh.subnetworks import (
    WEIGHTS,
    Blocks,
    Budget,
    Granularity,
    MultiSubnetwork,
    OverlappingUnits,
    forms,
    prune,
    trace_units,
)
from msh.subnetworks.blocks import plan_blocks

YES, NO = "yes", "no"
ROWS = ("starts", "prunable", "gradients", "bitwise", "loads", "exports", "units", "blocks")
"""Checks, in the order of the table's columns."""
LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase)
OUTPUTS, EXAMPLES = 3, 4


def check(architecture: Architecture) -> dict[str, str]:
    """Check one architecture: column to "yes", or to what does not work."""
    torch.manual_seed(0)
    backbone, recipe = make(architecture)
    found = {"starts": YES, "prunable": prunable_set(backbone)}
    found["gradients"] = gradients(copy.deepcopy(backbone), architecture)
    network = MultiSubnetwork(backbone, recipe=recipe)
    inputs = make_inputs(architecture, 1)
    learn(network, "a", inputs)
    before = network.module("a")(inputs).clone()
    learn(network, "b", make_inputs(architecture, 2))
    network.forget_modules()
    found["bitwise"] = YES if torch.equal(network.module("a")(inputs), before) else NO
    found["loads"] = loads(network, inputs, before)
    found["exports"] = exports(network, inputs, before)
    found["units"] = units(network, inputs, before)
    found["blocks"] = blocks(architecture, inputs)
    return found


def make(architecture: Architecture) -> tuple[nn.Module, dict]:
    """Build a backbone as a run does, with its recipe."""
    chosen = Named(**architecture.settings)
    read = chosen.inputs()
    recipe = chosen.recipe(chosen.shape(read, [architecture.shape]), read)
    backbone = build(recipe)
    return backbone, {**recipe, "features": backbone.features, "pool": backbone.pool}


def make_inputs(architecture: Architecture, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if len(architecture.shape) == 1:
        return torch.randint(1, 50, (EXAMPLES, *architecture.shape), generator=generator)
    return torch.randn(EXAMPLES, *architecture.shape, generator=generator)


def expected_prunable(backbone: nn.Module) -> set[int]:
    """Find the weights of layers, by their classes, apart from the rule that is checked: ids of parameters."""
    weights = set()
    for path, module in backbone.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        is_position = any(word in path.lower() for word in ("position", "token_type", "relative_attention", "wpe"))
        if isinstance(module, LAYERS) or kinds & {"Conv1D", "MixtralExperts", "MixtralTopKRouter"}:
            own = module.named_parameters(recurse=False)
            weights |= {id(p) for name, p in own if "bias" not in name and p.dim() > 1}
        elif isinstance(module, nn.Embedding) and not is_position:
            weights.add(id(module.weight))
        elif kinds & {"ParametrizedConv1d", "ParametrizedConv2d", "ParametrizedConv3d"}:
            weights.add(id(module.parametrizations.weight.original1))
    for module in backbone.modules():
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            weights.add(id(module.parametrizations.weight.original1))
    return {id(p) for p in backbone.parameters() if id(p) in weights and p.requires_grad}


def prunable_set(backbone: nn.Module) -> str:
    expected, named = expected_prunable(backbone), dict(backbone.named_parameters())
    found = {id(named[name]) for name in MultiSubnetwork(copy.deepcopy(backbone)).names.prunable}
    wrong = sorted(name for name, p in named.items() if id(p) in found ^ expected)
    return YES if not wrong else f"not {wrong[0]}"


def gradients(backbone: nn.Module, architecture: Architecture) -> str:
    """Compare a task that holds every weight with plain torch, in evaluation mode: outputs and gradients, bitwise."""
    plain, head = copy.deepcopy(backbone).eval(), nn.Linear(backbone.features, OUTPUTS)
    network = MultiSubnetwork(backbone)
    network.add_task("a", copy.deepcopy(head))
    network.begin("a")
    network.eval()
    inputs = make_inputs(architecture, 1)
    targets = torch.arange(EXAMPLES) % OUTPUTS
    functional.cross_entropy(network(inputs), targets).backward()
    functional.cross_entropy(head(plain(inputs)), targets).backward()
    sub, own = network.subnetwork("a"), dict(plain.named_parameters())
    pairs = [(name, sub.values[name]) for name in network.names.prunable]
    pairs += [(name, sub.private[name]) for name in network.names.parameters]
    for name, parameter in pairs:
        same = own[name].grad, parameter.grad
        if same[0] is None or same[1] is None or not torch.equal(padded(network, name, same[0]), same[1]):
            return f"not {name}"
    return YES


def padded(network: MultiSubnetwork, name: str, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient without that of the padding row, which belongs to no task."""
    row = network.names.padding.get(name)
    if row is not None:
        gradient = gradient.clone()
        gradient[row] = 0.0
    return gradient


def learn(network: MultiSubnetwork, task: str, inputs: torch.Tensor, kind: Granularity = WEIGHTS) -> None:
    """Train a task with a fifth of the weights for three steps, and freeze it."""
    head = {"_target_": "torch.nn.Linear", "in_features": network.backbone.features, "out_features": OUTPUTS}
    sizes = dict(kind.sizes) if isinstance(kind, Blocks) else {}
    granularity = "weight" if kind is WEIGHTS else "block" if isinstance(kind, Blocks) else "unit"
    network.add_task(task, build(head), granularity=granularity, recipe={"head": head}, blocks=sizes)
    network.begin(task, generator=torch.Generator().manual_seed(0))
    free = {name: int(mask.sum()) for name, mask in network.free().items()}
    kept = Budget(density=0.2).counts(network.sizes(), free)
    if isinstance(kind, Blocks):
        numbers = kind.counts(network.sizes())
        plan = plan_blocks(numbers, network.state.total().size, {task: Budget(density=0.2)}, allow_empty=True)
        kept = {name: max(1, count) for name, count in plan[task].items()}  # the layers are tiny
    prune(network, task, kept, granularity=kind)
    network.compact(task)
    network.train()
    sub = network.subnetwork(task)
    optimizer = torch.optim.AdamW(sub.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), torch.arange(EXAMPLES) % OUTPUTS).backward()
        optimizer.step()
    network.freeze(task)


def loads(network: MultiSubnetwork, inputs: torch.Tensor, outputs: torch.Tensor) -> str:
    """Rebuild the network from its file, by recipe alone."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save_network(path, network)
        target = network.recipe["model"]["_target_"]
        classes = {} if target.startswith("msh.") else {target: lambda **args: build({"_target_": target, **args})}
        again = rebuild_network(path, classes)
    return YES if torch.equal(again.module("a")(inputs), outputs) else NO


def exports(network: MultiSubnetwork, inputs: torch.Tensor, outputs: torch.Tensor) -> str:
    """Export a task as a program of torch.export, and compare its outputs."""
    try:
        program = torch.export.export(network.module("a"), (inputs,))
    except Exception as error:  # torch.export raises many types
        return f"no: {type(error).__name__}"
    return YES if torch.allclose(program.module()(inputs), outputs, 1e-4, 1e-5) else NO


def units(network: MultiSubnetwork, inputs: torch.Tensor, before: torch.Tensor) -> str:
    """Learn a task of whole units: count the layers of which it computes a part, or name what prevents it.

    Small tensors must compute as those of full size, and the first task's outputs stay the same.
    """
    try:
        kind = OverlappingUnits(trace_units(network))
    except ValueError as error:
        return "no: " + str(error).partition("for this backbone: ")[2].split(":")[0]
    learn(network, "c", inputs, kind)
    small = network.module("c")(inputs)
    network.subnetwork("c").granularity = "weight"
    network.forget_modules()
    same = torch.allclose(network.module("c")(inputs), small, 1e-4, 1e-5)
    if not same or not torch.equal(network.module("a")(inputs), before):
        return NO
    return f"{len(kind.graph.small)} of {len(kind.graph.layers)}"


def blocks(architecture: Architecture, inputs: torch.Tensor) -> str:
    """Learn a task of blocks, and another one after it: count the tensors of which it keeps whole blocks.

    Linear layers compute with the blocks alone, whatever their size: as with tensors of full size, and bitwise the same
    after the next task.
    """
    torch.manual_seed(0)
    network, computed = MultiSubnetwork(make(architecture)[0]), []

    def in_blocks(shape, values, kept, size):
        return len(shape) == 2 and kept > 0 and not computed.append(shape)

    with patch.object(forms, "may_be_in_blocks", in_blocks):
        kind = Blocks.of(network, (1, 2))
        learn(network, "a", inputs, kind)
        small = network.module("a")(inputs).clone()
        learn(network, "b", make_inputs(architecture, 2))
        network.forget_modules()
        bitwise = torch.equal(network.module("a")(inputs), small)
    network.subnetwork("a").blocks = {}
    network.forget_modules()
    same = torch.allclose(network.module("a")(inputs), small, 1e-4, 1e-5)
    matrices = any(len(kind.shapes[name]) == 2 for name in kind.sizes)
    works = bitwise and same and bool(computed) == matrices
    return f"{len(kind.sizes)} of {len(network.names.prunable)}" if works else NO

"""What several tests of the core share: a tiny backbone, every dense optimizer, a task's life in one call."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from msh.files.state_file import fill_network, read_state
from msh.subnetworks import (
    CRITERIA,
    MultiSubnetwork,
    NetworkState,
    TaskState,
    let_scores_choose,
    prune,
    start_scores,
)

NORMS = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm1d(4),
    "layer": lambda: nn.LayerNorm([4, 2]),
    "group": lambda: nn.GroupNorm(2, 4),
}
PRUNABLE = ["2.weight", "6.weight"]
INPUTS, FEATURES, OUTPUTS = 4, 5, 3


def make_backbone(norm: str = "none", seed: int = 0) -> nn.Sequential:
    """(batch, 4) to (batch, 5): a convolution of 12 weights, a norm, a linear layer of 40 weights."""
    torch.manual_seed(seed)
    layers = [
        nn.Identity(),
        nn.Unflatten(1, (1, INPUTS)),
        nn.Conv1d(1, 4, 3),
        NORMS[norm](),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, FEATURES),
    ]
    return nn.Sequential(*layers)


def make_network(norm: str = "none", seed: int = 0) -> MultiSubnetwork:
    return MultiSubnetwork(make_backbone(norm, seed))


def make_mlp(*sizes: int, bias: bool = True) -> nn.Sequential:
    """Linear layers "0", "1", ... with nothing between them."""
    return nn.Sequential(*(nn.Linear(inputs, outputs, bias=bias) for inputs, outputs in pairwise(sizes)))


def make_head(seed: int = 0) -> nn.Linear:
    torch.manual_seed(100 + seed)
    return nn.Linear(FEATURES, OUTPUTS)


def make_batch(seed: int = 0, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, INPUTS, generator=generator), torch.randn(size, OUTPUTS, generator=generator)


def dense_optimizers() -> list[type[torch.optim.Optimizer]]:
    """Every optimizer that torch.optim offers, but for those that take sparse gradients only."""
    found = {
        value
        for value in vars(torch.optim).values()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    }
    return sorted(found - {torch.optim.Optimizer, torch.optim.SparseAdam}, key=lambda cls: cls.__name__)


def make_optimizer(cls: type[torch.optim.Optimizer], module: nn.Module, **overrides: float) -> torch.optim.Optimizer:
    """An optimizer of the module's parameters, with weight decay and momentum wherever it has them."""
    known = inspect.signature(cls).parameters
    wanted = {"lr": 0.02, "weight_decay": 0.2, "momentum": 0.9, "max_iter": 2} | overrides
    parameters = list(module.parameters())
    if cls.__name__ == "Muon":  # it refuses all others
        parameters = [parameter for parameter in parameters if parameter.dim() == 2]
    return cls(parameters, **{name: value for name, value in wanted.items() if name in known})


def train(
    network: MultiSubnetwork,
    optimizer: torch.optim.Optimizer,
    steps: int = 3,
    seed: int = 0,
    autocast: bool = False,
    clip: bool = False,
) -> None:
    """Train the active task for some steps on one batch."""
    inputs, targets = make_batch(seed)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = network(inputs)
        loss = functional.mse_loss(outputs.float(), targets)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def make_state(owners: Mapping[str, object], tasks: Sequence[TaskState]) -> NetworkState:
    """A network of which only owner ids are known: tensor name to ids (*shape), as nested lists or a tensor."""
    ids = {name: torch.as_tensor(found) for name, found in owners.items()}
    return NetworkState({}, ids, tasks={entry.name: entry for entry in tasks})


def load_network(path: Path, network: MultiSubnetwork) -> dict[str, str]:
    """Fill a network that has the file's tasks; returns the file's notes."""
    file = read_state(path, "network")
    fill_network(path, network, file)
    return file.notes


def counts_by_layer(network: MultiSubnetwork) -> dict[str, dict[str, int]]:
    """Layer to each task's number of weights, and under "" to that of the free ones."""
    return {layer.name: {"": layer.free, **layer.owned} for layer in network.state.capacity()}


def quarter(network: MultiSubnetwork) -> dict[str, int]:
    return {name: size // 4 for name, size in network.sizes().items()}


def learn(
    network: MultiSubnetwork,
    task: str,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    form: str = "compact",
    reuse: str = "none",
    seed: int = 0,
    **how: bool,
) -> None:
    """A task's life: added, trained while dense, masked, scored or compact, cut to a quarter of all weights, frozen."""
    for _ in live(network, task, optimizer, form, reuse, seed, **how):
        pass


def live(
    network: MultiSubnetwork,
    task: str,
    optimizer: type[torch.optim.Optimizer],
    form: str,
    reuse: str,
    seed: int,
    **how: bool,
) -> Iterator[str]:
    """As `learn`, with a stop after each thing that is done; what was done is yielded."""
    network.add_task(task, head=make_head(seed), reuse=reuse)
    network.begin(task)
    yield "begun"
    if form == "scored":
        start_scores(network, task)
        let_scores_choose(network, task, quarter(network))
        yield "scored"
    elif form != "dense":
        prune(network, task, quarter(network))
        yield "pruned"
    if form == "compact":
        network.compact(task)
        yield "compacted"
    train(network, make_optimizer(optimizer, network), seed=seed, **how)
    yield "trained"
    if form in ("dense", "scored"):
        prune(network, task, quarter(network), CRITERIA["learned" if form == "scored" else "magnitude"])
    network.freeze(task)
    yield "frozen"


def copy_state(network: MultiSubnetwork) -> dict[str, object]:
    """The state as it comes back from a file that was read without running code."""
    file = BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def differences(left: dict[str, object], right: dict[str, object]) -> list[str]:
    """Keys on which two states differ, by value, type or shape, or that one of them lacks."""
    return sorted(key for key in left.keys() | right.keys() if not _same(left.get(key), right.get(key)))


def _same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and left == right


def seen_weights(network: MultiSubnetwork, task: str) -> dict[str, torch.Tensor]:
    """The weights that the backbone's layers compute with in a forward pass of the task."""
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for name in network.names.prunable:
        layer = network.backbone.get_submodule(name.rpartition(".")[0])

        def look(module, inputs, name=name):
            seen[name] = module.weight.detach().clone()

        hooks.append(layer.register_forward_pre_hook(look))
    with torch.no_grad():
        network(make_batch()[0], task)
    for hook in hooks:
        hook.remove()
    return seen

"""Test that threads, compilers, exporters, checkpoints and hooks can use each task's module like any other."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from msh.backbones import Adapted
from msh.files.state_file import read_state, save_network, save_subnetwork
from msh.subnetworks import Budget, MultiSubnetwork, prune, sparse
from msh.subnetworks.views import TaskNetwork, uses_checkpoints

PHASES = ["masked", "compact"]


class Checkpointed(nn.Module):
    """Three blocks, recomputed in the backward pass if `reentrant` is not None."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(3)])

    def forward(self, inputs):
        for block in self.blocks:
            again = self.reentrant is not None
            inputs = checkpoint(block, inputs, use_reentrant=self.reentrant) if again else block(inputs)
        return inputs


class Requiring(Checkpointed):
    """Lets its inputs require gradients itself, as wav2vec2 does: torch allows that of leaves alone."""

    def forward(self, inputs):
        inputs = inputs * 1.0
        if self.training:
            inputs.requires_grad = True
        return super().forward(inputs)


class Constants(nn.Module):
    """A layer, a large mask that is not saved, and a saved table of constants."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.register_buffer("causal", torch.ones(100, 1000), persistent=False)
        self.register_buffer("table", torch.arange(50_000.0))

    def forward(self, inputs):
        return self.layer(inputs) * self.causal[0, 0] + self.table[0]


class Centred(nn.Module):
    """Assigns a buffer, rather than changing it in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs):
        if self.training:
            self.mean = self.mean * 0.9 + inputs.mean().detach() * 0.1
        return self.layer(inputs - self.mean)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=0)

    def forward(self, words):
        return self.table(words).mean(1)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(6, 8, num_layers=2, batch_first=True)

    def forward(self, inputs):
        return self.layer(inputs)[0][:, -1]


def make_mlp():
    return nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())


def start(network, task, outputs=64, density=0.2):
    """Add a masked, pruned task."""
    torch.manual_seed(ord(task[-1]))
    network.add_task(task, head=nn.Linear(outputs, 3))
    network.begin(task, generator=torch.Generator().manual_seed(ord(task[-1])))
    prune(network, task, kept=Budget(density=density).counts(network.sizes(), free={}))


def fit(network, task, inputs, steps=5):
    """Train some steps; returns the last loss."""
    network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = network(inputs, task).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def learn(network, task, inputs, outputs=64, density=0.2, steps=5):
    start(network, task, outputs, density)
    network.compact(task)
    fit(network, task, inputs, steps)
    network.freeze(task)


def make_frozen(tasks="ab", **options):
    """Make a network with frozen tasks, and its inputs."""
    torch.manual_seed(0)
    network, inputs = MultiSubnetwork(make_mlp(), **options), torch.randn(16, 32)
    for task in tasks:
        learn(network, task, inputs)
    return network.eval(), inputs


def answers(network, inputs):
    with torch.no_grad():
        return {task: network(inputs, task) for task in network.tasks}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[task], right[task]) for task in left)


# ---- threads


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_eight_threads_answer_as_one(form, monkeypatch):
    monkeypatch.setattr(sparse, "SMALLEST", 1 if form == "sparse" else 1 << 40)
    network, inputs = make_frozen("abcd")
    expected, digests = answers(network, inputs), {task: network.digest(task) for task in "abcd"}
    state = {k: v.clone() for k, v in network.state_dict().items() if torch.is_tensor(v)}
    network.forget_modules()  # threads build them, too

    def ask(thread):
        wrong = 0
        with torch.no_grad():
            for call in range(1000):
                task = "abcd"[(thread + call) % 4]
                wrong += not torch.equal(network(inputs, task), expected[task])
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [0] * 8
    assert same(answers(network, inputs), expected)
    assert {task: network.digest(task) for task in "abcd"} == digests
    after = {k: v for k, v in network.state_dict().items() if torch.is_tensor(v)}
    assert same(after, state)


# ---- a frozen task's module


def test_a_frozen_tasks_module_is_ordinary_and_in_evaluation_mode():
    network, inputs = make_frozen()
    module = network.module("a")
    assert isinstance(module, TaskNetwork)
    assert network.module("a") is module
    expected = network(inputs, "a")
    for _ in range(2):
        assert not any(part.training for part in module.modules())
        assert torch.equal(module(inputs), expected)
        assert torch.equal(network.train()(inputs, "a"), expected)
        module.train()
    assert list(module.parameters()) == []
    assert {"backbone.0.weight", "backbone.1.running_mean", "head.bias"} <= module.state_dict().keys()
    assert network.training


def test_building_a_module_keeps_the_networks_mode():
    network, _ = make_frozen()
    network.train()
    network.module("a")
    assert all(part.training for part in network.backbone.modules())


def test_a_module_is_rebuilt_from_the_current_tensors():
    network, inputs = make_frozen()
    module, before = network.module("a"), network(inputs, "a")
    state = copy.deepcopy(network.state_dict())
    state["subnetworks.a.head.bias"] += 1.0
    network.load_state_dict(state)
    assert network.module("a") is not module
    assert torch.allclose(network(inputs, "a"), before + 1.0)
    network.double()
    assert network(inputs.double(), "a").dtype == torch.float64
    network.release("a")
    with pytest.raises(KeyError, match="'a'"):
        network.module("a")


def test_the_least_recently_used_module_is_dropped():
    network, _ = make_frozen("abc")
    size = sum(weight.nbytes for _, weight in network.weights())
    network = make_frozen("abc", cache_bytes=2 * size)[0]
    a, b = network.module("a"), network.module("b")
    assert network.module("a") is a  # b is now the least recently used
    network.module("c")
    assert list(network._modules_in_use) == ["a", "c"]
    assert network.module("a") is a
    assert network.module("b") is not b
    assert list(network._modules_in_use) == ["a", "b"]


def test_the_module_used_last_is_kept_at_any_size():
    network, inputs = make_frozen("ab", cache_bytes=0)
    expected = answers(network, inputs)
    assert list(network._modules_in_use) == ["b"]
    assert network.module("b") is network.module("b")
    assert same(answers(network, inputs), expected)


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("how", ["export", "trace", "script"])
def test_a_frozen_tasks_module_can_be_exported(how, form, monkeypatch):
    monkeypatch.setattr(sparse, "SMALLEST", 1 if form == "sparse" else 1 << 40)
    network, inputs = make_frozen()
    module = network.module("a")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        warnings.simplefilter("ignore", FutureWarning)
        if how == "export":
            made = torch.export.export(module, (inputs,)).module()
        else:
            made = torch.jit.trace(module, (inputs,)) if how == "trace" else torch.jit.script(module)
        torch.testing.assert_close(made(inputs), network(inputs, "a"))


def test_hooks_of_the_backbone_run_in_existing_modules():
    network, inputs = make_frozen("a")
    start(network, "b")
    modules, seen = [network.module(task) for task in "ab"], []
    before = answers(network, inputs)
    handle = network.backbone[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    network.backbone.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    assert [network.module(task) for task in "ab"] == modules
    changed = answers(network, inputs)
    assert seen == [(16, 64)] * 2
    handle.remove()
    assert same(answers(network, inputs), changed)
    assert len(seen) == 2
    assert all(not torch.equal(changed[task], before[task]) for task in "ab")


@pytest.mark.parametrize("how", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_network_is_copied_and_pickled_with_its_modules_in_use(how):
    network, inputs = make_frozen("ab")
    start(network, "c")
    expected, digests = answers(network, inputs), {task: network.digest(task) for task in network.tasks}
    copied = how(network)
    assert same(answers(copied, inputs), expected)
    assert {task: copied.digest(task) for task in copied.tasks} == digests
    fit(copied, "c", inputs)
    assert copied.digest("c") != digests["c"]
    assert {task: network.digest(task) for task in network.tasks} == digests
    assert same(answers(network.eval(), inputs), expected)


# ---- a task in training


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_give_the_same_gradients(reentrant, phase, form, monkeypatch):
    monkeypatch.setattr(sparse, "SMALLEST", 1 if form == "sparse" else 1 << 40)

    def gradients(how):
        torch.manual_seed(1)
        network = MultiSubnetwork(Checkpointed(how))
        start(network, "t", 16, density=0.3)
        if phase == "compact":
            network.compact("t")
        torch.manual_seed(2)
        network.train()(torch.randn(8, 16), "t").square().sum().backward()
        return {name: parameter.grad for name, parameter in network.subnetwork("t").named_parameters()}

    plain, checkpointed = gradients(None), gradients(reentrant)
    assert plain.keys() == checkpointed.keys()
    assert len(plain) == 3 + 3 + 2  # weights, biases, head
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(checkpointed[name], gradient)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_a_module_may_let_its_inputs_require_gradients_itself(reentrant):
    network = MultiSubnetwork(Requiring(reentrant))
    start(network, "t", 16, density=0.3)
    network.train()(torch.randn(8, 16), "t").square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.subnetwork("t").parameters())


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_the_flags_of_libraries_say_whether_they_use_checkpoints(library, on):
    if library == "timm":
        model = pytest.importorskip("timm").create_model("test_vit", num_classes=0)
        model.set_grad_checkpointing(on)
    else:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=30))
        if on:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert uses_checkpoints(nn.Sequential(model)) == on


def test_wav2vec2_trains():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    layers = {"conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 4], "num_feat_extract_layers": 2}
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
    model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**sizes, **layers, **places))
    network = MultiSubnetwork(Adapted(model, [400]))
    start(network, "t", 16, density=0.3)
    network.train()(torch.randn(3, 400), "t").square().sum().backward()
    missing = [name for name, value in network.subnetwork("t").named_parameters() if value.grad is None]
    assert missing == []


def old(wrap):
    def wrapped(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return wrap(layer)

    return wrapped


NORMALIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": old(nn.utils.weight_norm),
    "old spectral_norm": old(nn.utils.spectral_norm),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_normalized_weights_stay_finite_at_low_density_and_frozen_ones_unchanged(name):
    torch.manual_seed(0)
    wrap, inputs = NORMALIZED[name], torch.randn(16, 20)
    network = MultiSubnetwork(nn.Sequential(wrap(nn.Linear(20, 30)), nn.ReLU(), wrap(nn.Linear(30, 20))))
    outputs = {}
    for task in "ab":
        network.add_task(task, head=nn.Linear(20, 2))
        network.begin(task, generator=torch.Generator().manual_seed(ord(task)))
        fit(network, task, inputs, 3)
        prune(network, task, kept=Budget(density=0.03).counts(network.sizes(), free={}))
        network.compact(task)
        fit(network, task, inputs, 3)
        network.freeze(task)
        outputs[task] = network(inputs, task).detach()
        assert outputs[task].isfinite().all()
    assert torch.equal(network(inputs, "a"), outputs["a"])
    assert not torch.equal(outputs["a"], outputs["b"])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU], ids=["LSTM", "GRU"])
def test_recurrent_layers_train_and_freeze(kind):
    torch.manual_seed(0)
    network, inputs = MultiSubnetwork(Recurrent(kind)), torch.randn(5, 7, 6)
    start(network, "a", 8)
    fit(network, "a", inputs, 3)
    network.compact("a")
    values = {name: value.detach().clone() for name, value in network.subnetwork("a").values.items()}
    fit(network, "a", inputs, 3)
    assert all(not torch.equal(value, values[name]) for name, value in network.subnetwork("a").values.items())
    network.eval()
    trained = network(inputs, "a").detach()
    network.freeze("a")
    assert torch.equal(network(inputs, "a"), trained)
    learn(network, "b", inputs, 8)
    assert torch.equal(network.eval()(inputs, "a"), trained)


# ---- buffers


def test_constant_buffers_are_stored_once_or_not_at_all(tmp_path):
    network = MultiSubnetwork(Constants())
    for place in range(10):
        start(network, f"t{place}", 16, density=0.05)
        network.freeze(f"t{place}")
    state = network.state_dict()
    assert [key for key in state if "causal" in key] == []
    assert [key for key in state if "table" in key] == ["backbone.table"]
    save_network(tmp_path / "net", network)
    save_subnetwork(tmp_path / "sub", network, "t0")
    assert (tmp_path / "net").stat().st_size < 1.1 * 4 * 50_000 + 20_000
    assert "causal" not in (tmp_path / "net").read_bytes().decode("latin-1")
    found = read_state(tmp_path / "net").state
    assert [name for name in found.tasks["t0"].private if "table" in name] == []
    assert torch.equal(found.private("t0")["private.table"], torch.arange(50_000.0))
    assert found.digest("t3") == network.digest("t3")


def test_a_buffer_assigned_in_a_forward_pass_is_private():
    torch.manual_seed(0)
    network = MultiSubnetwork(Centred())
    start(network, "a", 8, density=0.5)
    fit(network, "a", torch.full((4, 4), 3.0), 20)
    expected = 3.0 * (1 - 0.9**20)  # 2.635
    assert float(network.subnetwork("a").private["mean"]) == pytest.approx(expected, rel=1e-5)
    network.compact("a")
    fit(network, "a", torch.full((4, 4), 3.0), 1)
    assert float(network.subnetwork("a").private["mean"]) == pytest.approx(3.0 * (1 - 0.9**21), rel=1e-5)
    network.freeze("a")
    before = network(torch.ones(2, 4), "a")
    network.add_task("b", head=nn.Linear(8, 3))
    network.begin("b")
    fit(network, "b", torch.full((4, 4), -3.0), 2)
    assert float(network.subnetwork("b").private["mean"]) == pytest.approx(-3.0 * (1 - 0.9**2), rel=1e-5)
    assert float(network.backbone.mean) == 0.0
    assert torch.equal(network(torch.ones(2, 4), "a"), before)


# ---- weights that are nobody's


def test_weights_that_the_user_froze_are_shared_and_never_change():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
    backbone[0].weight.requires_grad_(False)
    frozen = backbone[0].weight.detach().clone()
    network, inputs = MultiSubnetwork(backbone), torch.randn(6, 4)
    assert (network.names.prunable, network.names.shared) == (["2.weight"], ["0.weight"])
    for task in "ab":
        learn(network, task, inputs, 8)
    network.release("b")
    assert torch.equal(network.backbone[0].weight, frozen)
    assert torch.equal(network.module("a").backbone[0].weight, frozen)
    assert [key for key in network.state_dict() if key.endswith("0.weight") or "0/weight" in key] == [
        "backbone.0.weight"
    ]
    alone = network.state.only("a")
    assert torch.equal(alone.defaults["0.weight"], frozen)


@pytest.mark.parametrize("generator", [None, 3])
def test_the_padding_row_is_unowned_and_stays_0(generator):
    torch.manual_seed(0)
    network, words = MultiSubnetwork(Words()), torch.randint(1, 20, (4, 5))
    assert network.names.padding == {"table.weight": 0}
    assert network.sizes() == {"table.weight": 19 * 8}
    assert not network.free()["table.weight"][0].any()
    network.add_task("a", head=nn.Linear(8, 2))
    network.begin("a", generator=None if generator is None else torch.Generator().manual_seed(generator))
    for phase in ("masked", "pruned", "compact", "frozen"):
        if phase == "pruned":
            prune(network, "a", kept={"table.weight": 100})
        elif phase == "compact":
            network.compact("a")
        elif phase == "frozen":
            network.freeze("a")
        if phase != "frozen":
            fit(network, "a", words, 3)
        shown = network(torch.zeros(1, 5, dtype=torch.long), "a") - network.subnetwork("a").head.bias
        assert shown.abs().max() == 0.0
        assert not network.masks("a")["table.weight"][0].any()
    total = network.state.total()
    assert (total.owned, total.free, total.size) == ({"a": 100}, 52, 152)
    network.release("a")
    assert (network.state.total().free, network.backbone.table.weight[0].abs().max()) == (152, 0.0)


class Remembers(nn.Module):
    """A backbone that writes into a tensor while it trains."""

    input_shape, features = (8,), 8

    def __init__(self, where):
        super().__init__()
        self.layer, self.where = nn.Linear(8, 8), where
        if where == "attribute":
            self.mean = torch.zeros(8)
        else:
            self.register_buffer("mean", torch.zeros(8), persistent=where == "persistent")
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, inputs):
        hidden = self.layer(inputs)
        self.cache = torch.zeros(len(inputs))  # grows, as a cache of positions does
        if self.training and self.where != "nothing":
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return hidden - self.mean


@pytest.mark.parametrize("where", ["persistent", "nothing", "lost", "attribute"])
def test_freezing_warns_of_what_training_wrote_and_no_file_holds(where, caplog):
    torch.manual_seed(0)
    network = MultiSubnetwork(nn.Sequential(Remembers(where)))
    network.add_task("a", nn.Linear(8, 3))
    network.begin("a")
    network.train()
    network(torch.randn(6, 8), "a")
    network.eval()
    network.compact("a")
    before = network(torch.ones(1, 8), "a")
    network.freeze("a")
    is_same = torch.allclose(network(torch.ones(1, 8), "a"), before)
    assert is_same == (where in ("persistent", "nothing"))
    expected = "task a: what training has written into 0.mean is lost"
    assert [expected in record.message for record in caplog.records] == ([] if is_same else [True])

import pytest
import torch

from msh.subnetworks import CRITERIA

WEIGHT = torch.tensor([[-3.0, 2.0], [0.5, 0.0]])
GRADIENT = torch.tensor([[0.1, -2.0], [8.0, 9.0]])


def score(name, gradient=None, seed=0):
    return CRITERIA[name](WEIGHT, gradient, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnitude", [[3.0, 2.0], [0.5, 0.0]]),
        ("gradient", [[0.1, 2.0], [8.0, 9.0]]),
        ("weight_gradient", [[0.3, 4.0], [4.0, 0.0]]),
    ],
)
def test_scores_by_hand(name, expected):
    torch.testing.assert_close(score(name, GRADIENT), torch.tensor(expected))


def test_random_depends_on_the_generator_alone():
    state = torch.get_rng_state()
    assert torch.equal(score("random", seed=1), score("random", seed=1))
    assert not torch.equal(score("random", seed=1), score("random", seed=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert score("random").shape == WEIGHT.shape


@pytest.mark.parametrize("name", ["gradient", "weight_gradient"])
def test_a_missing_gradient_is_an_error(name):
    assert CRITERIA[name].needs_gradient
    with pytest.raises(ValueError, match=f"{name}.*needs the gradient"):
        score(name)


def test_scores_need_no_gradient_themselves():
    weight = torch.nn.Parameter(WEIGHT.clone())
    for criterion in CRITERIA.values():
        assert not criterion(weight, GRADIENT, torch.Generator()).requires_grad


def test_every_criterion_has_its_name():
    assert {name: criterion.name for name, criterion in CRITERIA.items()} == {
        name: name for name in ("magnitude", "gradient", "weight_gradient", "random", "learned")
    }

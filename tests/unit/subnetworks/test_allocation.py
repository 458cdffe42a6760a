import pytest
import torch

from messages import says
from msh.subnetworks import CapacityError, check_free, top_k_mask, top_k_masks


def test_the_highest_scores_are_kept():
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 0.7]])
    assert top_k_mask(scores, 3).tolist() == [[False, True, False], [True, False, True]]


def test_ties_go_to_the_lower_flat_index():
    scores = torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    assert top_k_mask(scores, 3).tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("k", [0, 1, 5, 6])
def test_all_equal_scores_still_give_exactly_k(k):
    mask = top_k_mask(torch.zeros(2, 3), k)
    assert mask.dtype == torch.bool
    assert mask.view(-1).tolist() == [place < k for place in range(6)]


def test_only_candidates_are_kept_at_any_score():
    scores, candidates = torch.tensor([9.0, 1.0, 8.0, 2.0, 3.0]), torch.tensor([False, True, False, True, True])
    assert top_k_mask(scores, 2, candidates).tolist() == [False, False, False, True, True]
    assert torch.equal(top_k_mask(scores, 3, candidates), candidates)


def test_a_score_outside_the_candidates_may_be_nan():
    scores = torch.tensor([float("nan"), 1.0, 2.0])
    assert top_k_mask(scores, 1, torch.tensor([False, True, True])).tolist() == [False, False, True]


def test_infinite_scores_are_ranked():
    scores = torch.tensor([float("inf"), 1.0, float("inf"), float("-inf")])
    assert top_k_mask(scores, 1).tolist() == [True, False, False, False]
    assert top_k_mask(scores, 3).tolist() == [True, True, True, False]


@pytest.mark.parametrize("k", [-1, 4])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=says("k", value=k)):
        top_k_mask(torch.ones(2, 2), k, torch.tensor([[True, True], [True, False]]))


def test_candidates_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"'scores'.*\(4,\).*\(2, 2\)"):
        top_k_mask(torch.ones(2, 2), 1, torch.ones(4, dtype=torch.bool))


def test_a_nan_score_of_a_candidate_is_an_error():
    with pytest.raises(ValueError, match="2 scores are NaN"):
        top_k_mask(torch.tensor([float("nan"), float("nan"), 1.0]), 1)


def test_several_tensors_compete_and_ties_go_to_the_earlier_one():
    scores = {"a": torch.tensor([[5.0], [1.0]]), "b": torch.tensor([4.0, 1.0, 9.0])}
    masks = top_k_masks(scores, 4)
    assert masks["a"].tolist() == [[True], [True]]
    assert masks["b"].tolist() == [True, False, True]


def test_one_tensor_may_get_nothing_of_a_shared_budget():
    masks = top_k_masks({"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([0.3, 0.4])}, 2)
    assert (masks["a"].tolist(), masks["b"].tolist()) == ([False, False], [True, True])


def test_candidates_restrict_every_tensor():
    scores = {"a": torch.tensor([5.0, 4.0]), "b": torch.tensor([3.0, 2.0])}
    masks = top_k_masks(scores, 2, {"a": torch.tensor([False, True]), "b": torch.tensor([False, True])})
    assert (masks["a"].tolist(), masks["b"].tolist()) == ([False, True], [False, True])


def test_check_free_accepts_an_exact_fit():
    check_free("digits", {"a": 3, "b": 1}, {"a": 3, "b": 1})
    check_free("digits", {"": 3}, {"a": 1, "b": 2})
    with pytest.raises(CapacityError, match="3"):
        check_free("digits", {"": 4}, {"a": 1, "b": 2})


def test_a_layer_without_weights_is_refused():
    with pytest.raises(CapacityError, match="'digits' would get no weight of layer 'b', of which 7 are free"):
        check_free("digits", {"a": 3, "b": 0}, {"a": 3, "b": 7})
    with pytest.raises(CapacityError, match="of the whole network, of which 0 are free"):
        check_free("digits", {"": 0}, {"a": 0, "b": 0})


def test_the_capacity_error_names_task_layer_wanted_and_free():
    with pytest.raises(CapacityError) as caught:
        check_free("wine", {"layers.1": 2, "layers.3": 40}, {"layers.1": 2, "layers.3": 31})
    message = str(caught.value)
    assert all(word in message for word in ("'wine'", "'layers.3'", "wants 40", "only 31 are free"))
    assert "layers.1" not in message
    assert isinstance(caught.value, ValueError)

"""Mask-text matching against brute force and the definitions."""

import itertools

import numpy as np
import pytest
import torch

from uniovseg.mask_text_matching import MaskTextMatchingConfig, cost_matrix, match_mask_text

ALL = MaskTextMatchingConfig()


def random_costs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize(("masks", "entities"), [(4, 4), (5, 3), (3, 5), (1, 1)])
def test_the_assignment_is_the_cheapest_of_all(masks: int, entities: int) -> None:
    costs = random_costs((2, masks, entities))
    cost = costs.mean(axis=0)
    few, many = min(masks, entities), max(masks, entities)
    table = cost if masks <= entities else cost.T
    cheapest = min(sum(table[i, j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(many), few))
    found = match_mask_text(ALL, costs)
    assert len(found) == few == len(set(found.masks.tolist())) == len(set(found.entities.tolist()))
    assert found.costs.sum() == pytest.approx(cheapest)
    assert (np.diff(found.costs) >= 0).all()
    np.testing.assert_array_equal(found.costs, cost[found.masks, found.entities])


@pytest.mark.parametrize("shape", [(1, 0, 3), (1, 3, 0), (2, 0, 0)])
@pytest.mark.parametrize("confidence", ["all", "top_fraction", "threshold", "mutual_best"])
def test_nothing_to_match(shape: tuple[int, ...], confidence: str) -> None:
    assert len(match_mask_text(MaskTextMatchingConfig(confidence=confidence), np.zeros(shape, np.float32))) == 0


def test_costs_are_those_of_the_equations() -> None:
    cosines = np.random.default_rng(1).uniform(-1, 1, (6, 4)).astype(np.float32)
    x = torch.from_numpy(cosines)
    np.testing.assert_allclose(cost_matrix(cosines, "clip_softmax", 30.0), 1 - torch.softmax(30 * x, dim=1), atol=1e-6)
    np.testing.assert_allclose(cost_matrix(cosines, "eq6_literal", 30.0), torch.softmax(1 - x, dim=1), atol=1e-6)
    np.testing.assert_allclose(cost_matrix(cosines, "raw", 30.0), 1 - x, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip_softmax", "eq6_literal", "raw"])
def test_alike_means_cheap_and_one_entity_is_compared_by_cosine(kind: str) -> None:
    cosines = np.array([[0.1, 0.3], [0.4, 0.2]], np.float32)
    cost = cost_matrix(cosines, kind, 50.0)
    assert cost[0, 1] < cost[0, 0] and cost[1, 0] < cost[1, 1]
    single = np.array([[0.1], [0.4], [0.2]], np.float32)
    assert match_mask_text(ALL, cost_matrix(single, kind, 50.0)[None]).masks.tolist() == [1]


def test_no_mask_has_costs_of_no_row() -> None:
    assert cost_matrix(np.zeros((0, 3), np.float32), "clip_softmax", 50.0).shape == (0, 3)


def test_filters() -> None:
    costs = np.array([[[0.1, 0.2, 0.9], [0.15, 0.8, 0.9], [0.3, 0.9, 0.6]]], np.float32)
    pairs = {"all": [(2, 2), (0, 1), (1, 0)]}
    found = match_mask_text(ALL, costs)
    assert sorted(zip(found.masks.tolist(), found.entities.tolist(), strict=True)) == sorted(pairs["all"])  # 0.15 + 0.2 + 0.6

    def kept(**settings: object) -> list[tuple[int, int]]:
        filtered = match_mask_text(MaskTextMatchingConfig.model_validate(settings), costs)
        return list(zip(filtered.masks.tolist(), filtered.entities.tolist(), strict=True))

    assert kept(confidence="top_fraction", top_fraction=0.7) == [(1, 0), (0, 1)]
    assert kept(confidence="top_fraction", top_fraction=0.1) == [(1, 0)]
    assert kept(confidence="threshold", max_cost=0.2) == [(1, 0), (0, 1)]
    assert kept(confidence="mutual_best") == []  # mask 0 is entity 0's best, and entity 0 is everybody's


def test_mutual_best_keeps_what_both_prefer() -> None:
    costs = np.array([[[0.1, 0.5], [0.6, 0.2]]], np.float32)
    assert len(match_mask_text(MaskTextMatchingConfig(confidence="mutual_best"), costs)) == 2


@pytest.mark.parametrize(("cost", "pairs"), [("clip_softmax", 1), ("eq6_literal", 1), ("raw", 0)])
def test_the_threshold_of_a_softmax_does_not_judge_a_single_entity(cost: str, pairs: int) -> None:
    costs = cost_matrix(np.array([[0.1], [0.4], [0.2]], np.float32), cost, 50.0)[None]
    found = match_mask_text(MaskTextMatchingConfig.model_validate({"cost": cost, "confidence": "threshold", "max_cost": 0.5}), costs)
    assert found.masks.tolist() == [1] * pairs


def test_equal_entities_get_a_mask_each() -> None:
    costs = cost_matrix(np.array([[0.4, 0.4], [0.3, 0.3], [0.1, 0.1]], np.float32), "clip_softmax", 50.0)[None]
    np.testing.assert_allclose(costs, 0.5)
    assert len(set(match_mask_text(ALL, costs).masks.tolist())) == 2

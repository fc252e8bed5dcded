"""The choice of types under a budget: against all combinations."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.quant.budget import choose_within
from tests.helpers.examples import examples

Tables = list[list[tuple[int, int]]]


def best(tables: Tables, budget: int) -> int:
    """The least total cost of all combinations within the budget."""
    combinations = product(*tables)
    return min(sum(cost for _, cost in one) for one in combinations if sum(size for size, _ in one) <= budget)


def chosen(tables: Tables, budget: int) -> tuple[int, int]:
    """Total size and cost of the choice."""
    sizes = [np.array([size for size, _ in table], np.int64) for table in tables]
    costs = [np.array([cost for _, cost in table], np.float64) for table in tables]
    picked = [table[index] for table, index in zip(tables, choose_within(sizes, costs, budget), strict=True)]
    return sum(size for size, _ in picked), sum(cost for _, cost in picked)


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_the_choice_fits_and_is_at_most_one_step_from_the_best_of_all_combinations(data: st.DataObject) -> None:
    option = st.tuples(st.integers(1, 40), st.integers(0, 100))
    tables = data.draw(st.lists(st.lists(option, min_size=1, max_size=5), min_size=1, max_size=4))
    smallest = sum(min(size for size, _ in table) for table in tables)
    budget = data.draw(st.integers(smallest, smallest + 100))
    size, cost = chosen(tables, budget)
    assert size <= budget
    # the bound of the relaxed problem: what is lost is less than the gain of the one step that did not fit
    largest = max(max(cost for _, cost in table) - min(cost for _, cost in table) for table in tables)
    assert best(tables, budget) <= cost <= best(tables, budget) + largest


def test_a_tensor_that_costs_more_gets_the_larger_type() -> None:
    sizes = [np.array([4, 8], np.int64)] * 2
    assert choose_within(sizes, [np.array([1.0, 0.1]), np.array([10.0, 1.0])], 12) == [0, 1]


def test_all_get_their_best_type_when_the_budget_is_large() -> None:
    sizes = [np.array([4, 8, 16], np.int64), np.array([2, 3], np.int64)]
    assert choose_within(sizes, [np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0])], 100) == [2, 0]


def test_a_budget_below_the_smallest_types_is_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes"):
        choose_within([np.array([4, 8]), np.array([5, 6])], [np.zeros(2), np.zeros(2)], 8)

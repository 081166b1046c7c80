"""Numbers that a network tells of an image: their specification and their results."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medserve.errors import ConfigError, ServerFailedError
from medserve.spec.section import read_section
from medserve.spec.values import ValueSpec, check_values
from medserve.tasks.regression import Estimate, Regression, estimates

# Targets that were standardised by a mean of 127 and a standard deviation of 41 months.
AGE = ValueSpec(name="bone age", unit="mo", unit_name="months", offset=127.0, scale=41.0)
EJECTION = ValueSpec(name="ejection fraction", unit="%", unit_name="percent", range=(5.0, 90.0))


def value(**changes: object) -> ValueSpec:
    content = {"name": "bone age", "unit": "mo", "unit_name": "months", **changes}
    return read_section(ValueSpec, content, "values[0]")


def test_a_standardised_number_is_brought_to_its_unit() -> None:
    found = estimates(np.array([-0.5, 60.0], np.float32), (AGE, EJECTION))

    assert found.values == (
        Estimate("bone age", 106.5, "mo", "months"),  # 127 - 41 / 2
        Estimate("ejection fraction", 60.0, "%", "percent"),
    )
    assert not found.review


def test_a_number_in_single_precision_is_mapped_in_double() -> None:
    number = float(np.float32(0.1))

    (found,) = estimates([number], (AGE,)).values

    assert found.value == 127.0 + 41.0 * 0.10000000149011612  # the double nearest to the single


def test_a_value_outside_of_its_range_is_told_as_it_is_with_a_doubt() -> None:
    found = estimates([0.0, 97.25], (AGE, EJECTION))

    assert found.review
    assert found.values[1].value == 97.25
    assert [each.doubt for each in found.values] == [
        "",
        "ejection fraction is 97.25 percent, outside of the plausible range from 5 to 90 percent",
    ]


@pytest.mark.parametrize("bound", [5.0, 90.0])
def test_the_bounds_of_the_range_are_plausible(bound: float) -> None:
    assert not estimates([bound], (EJECTION,)).review


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_no_answer(number: float) -> None:
    with pytest.raises(ServerFailedError, match="not finite for 'ejection fraction'"):
        estimates([0.0, number], (AGE, EJECTION))


def test_a_number_that_overflows_in_its_unit_is_no_answer() -> None:
    with pytest.raises(ServerFailedError, match="not finite"):
        estimates([1e300], (value(scale=1e300),))


def test_an_answer_claims_no_class_and_is_read_back() -> None:
    found = estimates([0.0, 97.25], (AGE, EJECTION))

    content = json.loads(json.dumps(found.to_json()))

    assert set(content) == {"values", "review"}
    assert content["review"] is True
    assert Regression.from_json(content) == found


def test_values_that_can_work_are_taken() -> None:
    check_values((AGE, EJECTION, value(name="ratio", unit="1", unit_name="no units")), "hand")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"unit": "per cent"}, r"expected unit as a UCUM code such as mo, % or 1, got 'per cent'"),
        ({"unit": "m" * 17}, "expected unit of 1 to 16 characters"),
        ({"name": " "}, "expected name of 1 to 64 characters"),
        ({"unit_name": ""}, "expected unit_name of 1 to 64 characters"),
        ({"scale": 0.0}, "a finite scale that is not 0, got 0 and 0"),
        ({"offset": math.inf}, "a finite offset"),
        ({"range": [240.0, 0.0]}, r"the lower first, got \[240, 0\]"),
        ({"range": [0.0, math.nan]}, "two finite numbers"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_place(
    changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^hand: values\[1\]: .*{told}"):
        check_values((EJECTION, value(**changes)), "hand")


def test_names_must_differ_and_one_must_be_there() -> None:
    with pytest.raises(ConfigError, match="names must differ, got 'bone age' 2 times"):
        check_values((AGE, EJECTION, value()), "hand")
    with pytest.raises(ConfigError, match="expected at least one value, got none"):
        check_values((), "hand")


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown key 'deviation'"):
        value(deviation=41.0)

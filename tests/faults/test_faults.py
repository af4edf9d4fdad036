"""One cause at a time: it is found first, and its saving is what removing it measures."""

from __future__ import annotations

import pytest

from tests.faults.causes import FAULTS
from tests.faults.laboratory import Experiment, Fault, Laboratory

LONG_REPEATS = 9
COSTLY = [fault for fault in FAULTS if not fault.costs_little]


def check(fault: Fault, tried: Experiment) -> None:
    told = tried.told()
    assert tried.saving >= fault.least_seconds, f"the cause costs too little to be judged\n{told}"
    assert tried.rank(fault.code) == 1, f"{fault.code} was to be first\n{told}"
    said = tried.said(fault.code)
    assert said is not None and abs(said - tried.saving) <= tried.tolerance, f"said {said}, measured {tried.saving:.3f}\n{told}"


@pytest.mark.parametrize("fault", [fault for fault in COSTLY if not fault.only_long], ids=str)
def test_the_cause_is_found_first_and_its_saving_is_what_removing_it_measures(laboratory: Laboratory, fault: Fault):
    laboratory.decide(lambda repeats: check(fault, laboratory.try_out(fault, repeats)))


@pytest.mark.long
@pytest.mark.parametrize("fault", COSTLY, ids=str)
def test_a_longer_series_of_every_cause(laboratory: Laboratory, fault: Fault):
    laboratory.decide(lambda repeats: check(fault, laboratory.try_out(fault, repeats)), LONG_REPEATS)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.costs_little], ids=str)
def test_a_cause_that_costs_little_is_no_other_cause(laboratory: Laboratory, fault: Fault):
    def nothing_else(repeats: int) -> None:
        tried = laboratory.try_out(fault, repeats)
        assert {each.code for each in tried.findings} <= {fault.code}, tried.told()
        assert abs((tried.said(fault.code) or tried.saving) - tried.saving) <= tried.tolerance, tried.told()

    laboratory.decide(nothing_else)


def test_enough_causes_are_checked_without_the_long_series():
    quick = [fault for fault in COSTLY if not fault.only_long]
    assert len(quick) >= 18
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)

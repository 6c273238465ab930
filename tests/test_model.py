"""The protocol of Cache's shared memory, as a model that spin looks at in full (tests/model)."""

import shutil

import pytest
from model.run import BUGS, SMALL, check

pytestmark = pytest.mark.skipif(not shutil.which("spin"), reason="spin is not installed")


@pytest.mark.parametrize("case", SMALL)
def test_nothing_that_can_happen_breaks_a_promise(case):
    outcome = check(SMALL[case], small=True)
    assert outcome.violation == ""
    assert outcome.complete
    assert outcome.states > 10_000


@pytest.mark.parametrize("bug", BUGS)
def test_a_mistake_made_on_purpose_is_found(bug):
    assert check(BUGS[bug], bug).violation

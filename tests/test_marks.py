"""What `scripts/check --fast` runs: the mark `fast` that tests/conftest.py sets."""

from __future__ import annotations

import pytest

from tests.study_helpers import ROOT

TESTS = """
import pytest

def test_plain():
    pass

@pytest.mark.slow
def test_slow():
    pass

@pytest.mark.one_fast
@pytest.mark.parametrize("n", (0, 1, 2))
def test_one(n):
    pass
"""


def test_plain_tests_and_first_of_one_fast_are_fast(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(TESTS)
    collected = pytester.runpytest_subprocess("--collect-only", "-q", "-m", "fast")
    names = [line.partition("::")[2] for line in collected.outlines if "::" in line]
    assert names == ["test_plain", "test_one[0]"]
    slow = pytester.runpytest_subprocess("--collect-only", "-q", "-m", "slow")
    names = [line.partition("::")[2] for line in slow.outlines if "::" in line]
    assert names == ["test_slow", "test_one[1]", "test_one[2]"]

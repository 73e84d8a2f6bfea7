"""Runs ray_cases.py on two Ray nodes in namespaces of their own: nothing listens outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.runtime.cluster.two_nodes import ALONE, why_not

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_cases_on_a_real_cluster() -> None:
    reason = why_not() if os.environ.get("METAH_TEST_RAY") else "minutes long: make test-ray"
    if reason is not None:
        pytest.skip(reason)
    options = ["-q", "-x", "-p", "no:cacheprovider", "--durations=0"]
    cases = [sys.executable, "-m", "pytest", *options, str(HERE / "ray_cases.py")]
    done = subprocess.run(
        [*ALONE, *cases],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)  # shown by pytest -s, and where the test fails
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

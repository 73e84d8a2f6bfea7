"""Rates, and the lines of progress where stderr is not a terminal."""

import pytest

from metah_runtime.cli import progress


@pytest.mark.parametrize(
    ("speed", "unit", "text"),
    [
        (0.0, "steps", "0 steps/s"),
        (0.4, "steps", "2.5 s/step"),
        (0.4, "step", "2.5 s/step"),
        (1.0, "images", "1 images/s"),
        (1234.5, "images", "1,234 images/s"),
    ],
)
def test_slow_rates_are_seconds_an_item(speed: float, unit: str, text: str) -> None:
    assert progress.rate(speed, unit) == text


def test_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("metah_runtime.cli.progress.time.monotonic", lambda: now)
    with progress.progress_bar("training", unit="step") as advance:
        for now in (10.0, 59.0, 61.0, 70.0, 122.0):  # noqa: B007
            advance(10, total=100)
    assert capsys.readouterr().err.splitlines() == [
        "training: 30 of 100, 2.0 s/step, about 0:02:22 left",
        "training: 50 of 100, 2.4 s/step, about 0:02:02 left",
    ]
    with progress.progress_bar("timing", 2, redraw="advance") as advance:
        now = 1000.0
        advance()
    assert capsys.readouterr().err == ""

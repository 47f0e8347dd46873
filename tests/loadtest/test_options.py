from __future__ import annotations

import argparse

import pytest

from loadtest import options
from loadtest.knee import knee_rate_per_s
from loadtest.options import Rate
from loadtest.plan import PlannedRound, PlannedSession
from scheduling.time_model import TimeModel


def parse(*arguments: str) -> options.Options:
    parser = argparse.ArgumentParser(exit_on_error=False)
    options.add_to(parser)
    return options.read(parser.parse_args(list(arguments)))


def test_rates_are_per_second_or_of_the_knee() -> None:
    assert parse().rate == Rate(0.5)
    assert parse("--rate", "2").rate == Rate(2.0)
    assert parse("--rate", "0.8x").rate == Rate(0.8, of_knee=True)


@pytest.mark.parametrize(("given", "seconds"), [("90", 90.0), ("90s", 90.0), ("2m", 120.0), ("0.5h", 1800.0)])
def test_times_take_a_unit(given: str, seconds: float) -> None:
    assert parse("--duration", given).duration_s == seconds


def test_the_scale_is_automatic_unless_given() -> None:
    assert parse("--slo-scale", "auto").slo_scale is None
    assert parse("--slo-scale", "2.5").slo_scale == 2.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("--rate", value) for value in ("fast", "0x", "-1")],
        *[("--duration", value) for value in ("0s", "s")],
        *[("--slo-scale", value) for value in ("tight", "0")],
        ("--length-scale", "nan"),
        ("--arrivals", "never"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=name):
        parse(f"{name}={value}")


def test_the_knee_is_what_steps_of_tight_tpot_carry() -> None:
    model = TimeModel(((0.02, 1e-3, 0.0, 0.0, 0.0, 0.0),), margin=1.3)
    one = PlannedRound(80, 80, 20, 0, "", 0.0)
    later = PlannedRound(150, 50, 50, 0, "last", 1.0)
    sessions = [PlannedSession(0, "chatbot", 0.0, (one,)), PlannedSession(1, "tool", 0.0, (one, later))]
    # A step of 2 * 21 ms computes 22 tokens; sessions cost 100 and 200 tokens.
    assert knee_rate_per_s([model], sessions) == pytest.approx(22 / 0.042 / 150)
    assert knee_rate_per_s([model, model], sessions) == pytest.approx(2 * 22 / 0.042 / 150)
    with pytest.raises(ValueError, match="--rate"):
        knee_rate_per_s([], sessions)

"""The figures of the server's benchmark: medians, quantiles, words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from unstir.bench.clients import Fetched, Tally
from unstir.bench.processes import Compared
from unstir.bench.server import Killed, LoadConfig, Result, Round
from unstir.bench.server_table import figures, lines, memory_growth, quantile


def result(**more: object) -> Result:
    def tally(count: int) -> Tally:
        fetched = Fetched(asked={}, place=Path())
        seconds = [float(i) for i in range(1, count + 1)]
        return Tally(accepted=count + 1, ended=count, busy=2, latencies=seconds, pictures=[fetched] * count, seconds=10)

    rounds = tuple(Round(tally=tally(count), before=5.0, after=5.0) for count in (40, 30, 50))
    fine = Compared(count=8, of=120, worst=1, wrong=())
    given: dict[str, object] = {
        "config": LoadConfig(),
        "ready": 2.345,
        "rounds": rounds,
        "memory": tuple(2**20 * mib for mib in (100, 102, 999, 999, 110, 112)),
        "compared": fine,
        "alone": (0.5, 9.0, 0.4),
        "behind": (1.0, 1.5, 0.2),
        "killed": Killed(accepted=64, ended=64, seconds=9.99, compared=fine, failures=()),
    }
    return Result(**{**given, **more})  # type: ignore[arg-type]


def test_programs_read_one_object() -> None:
    told = figures(result())
    assert json.loads(json.dumps(told)) == told
    assert told["jobs"] == {"accepted": 123, "ended": 120, "lost": 0, "busy": 6, "failures": []}
    assert told["pictures_per_second"] == [4.0, 3.0, 5.0]
    assert told["offline_pictures_per_second"] == [5.0] * 4
    assert told["share_of_offline"] == 0.8
    assert told["latency_seconds"] == {"median": 21.0, "p90": 39.0, "p99": 49.0, "max": 50.0}
    assert told["memory_mib"] == [101.0, 111.0]
    assert told["short_seconds"] == {"alone": 0.5, "behind": 1.0, "ratio": 2.0}
    assert told["killed"]["seconds"] == 10.0
    assert told["compared"] == {"pictures": 8, "of": 120, "worst": 1, "wrong": []}


def test_people_read_lines() -> None:
    said = lines(figures(result()))
    assert "start until it answers: 2.35 s" in said or "start until it answers: 2.34 s" in said
    assert any("64 clients, 300 s, jobs of one picture" in line for line in said)
    assert any("123 accepted, 120 ended, 0 lost, 0 failed, told 6 times to wait" in line for line in said)
    assert any(line.endswith("share 80%") for line in said)
    assert any("101.0 MiB, then 111.0 MiB" in line for line in said)
    assert any("0.5 s alone, 1.0 s behind 16 pictures of 50 steps: 2.0 times" in line for line in said)
    assert not any(line.startswith("wrong") for line in said)


def test_everything_wrong_is_told() -> None:
    bad = Compared(count=1, of=1, worst=9, wrong=("a.png is 9/255 from its serial twin",))
    killed = Killed(accepted=2, ended=1, seconds=1.0, compared=bad, failures=("job x never ended",))
    rounds = (Round(tally=Tally(failures=["POST /api/jobs: 500"], seconds=1.0), before=1.0, after=1.0),)
    said = lines(figures(result(rounds=rounds, compared=bad, killed=killed, memory=())))
    assert [line for line in said if line.startswith("wrong")] == [
        "wrong: POST /api/jobs: 500",
        "wrong: a.png is 9/255 from its serial twin",
        "wrong: job x never ended",
        "wrong: a.png is 9/255 from its serial twin",
    ]
    assert any("not told by this system" in line for line in said)


def test_mixed_jobs_have_no_share() -> None:
    """What they cost is not what the defaults cost."""
    told = figures(result(config=LoadConfig(is_mixed=True)))
    assert told["share_of_offline"] is None
    assert any("different steps" in line for line in lines(told))
    assert not any("share" in line for line in lines(told))


@pytest.mark.parametrize(("share", "value"), [(0, 1), (0.5, 3), (0.9, 5), (1, 5)])
def test_a_quantile_is_one_of_the_values(share: float, value: float) -> None:
    assert quantile([5, 1, 4, 2, 3], share) == value


def test_few_figures_have_no_thirds() -> None:
    assert math.isnan(quantile([], 0.5))
    assert memory_growth([1, 2]) is None
    assert memory_growth([1, 2, 3]) == (1, 3)
    assert memory_growth([1, 3, 9, 9, 9, 5, 7, 0]) == (2, 3.5)

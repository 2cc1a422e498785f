"""Small steps: the kernels and chains against sums, samples and closed forms of another kind; the whole experiment."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import Ancestral, sample
from unstir.diffusion.schedule import Level, LinearBeta
from unstir.verify.oracles import MixtureOracle

module: Any = importlib.import_module("unstir.reproduce.small_steps")  # the package has a function of this name

LAW = module.three_hills()
PROCESS = GaussianProcess(schedule=LinearBeta(), levels=None)
HALF = PROCESS.schedule.at(PROCESS.schedule.time_of(torch.tensor(0.0, dtype=torch.float64)))
DATA = PROCESS.schedule.at(torch.zeros((), dtype=torch.float64))


def test_the_law_is_of_unit_variance() -> None:
    x, weight = module.nodes(LAW, DATA)
    assert (weight @ x).item() == pytest.approx(0, abs=1e-12)
    assert (weight @ x.square()).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.25, 1e-3])
def test_a_step_adds_the_variance_that_it_was_asked_for(beta: float) -> None:
    s = module.level_before(PROCESS, HALF, beta)
    assert PROCESS.variances(s, HALF)[1].item() == pytest.approx(beta, rel=1e-9)
    assert (s.sigma == 0) == (beta == 0.5), "half of the variance is noise, and the step of 0.5 adds all of it"


@pytest.mark.parametrize("kind", module.KINDS)
def test_the_kl_of_a_step_is_a_difference_of_entropies(kind: str) -> None:
    """E KL = E[-log N] - h(x_s | x_t), and h(x_s | x_t) = h(x_s) + h(x_t | x_s) - h(x_t): three integrals of p_s, p_t."""
    s = module.level_before(PROCESS, HALF, 0.125)

    def entropy(level: Level) -> float:
        x = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
        logs = LAW.log_density(x, level)
        return -(logs.exp() * logs).sum().item() * 12 / 4000

    x_t, weight = module.nodes(LAW, HALF)
    variance = module.gaussian(LAW, PROCESS, x_t, HALF, s, kind).std.square()
    truth = LAW.reverse(x_t, HALF, s).variance
    spent = (weight * ((2 * math.pi * variance).log() + truth / variance)[:, 0]).sum().item() / 2
    inside = entropy(s) + math.log(2 * math.pi * math.e * 0.125) / 2 - entropy(HALF)
    assert module.step_kl_bits(LAW, PROCESS, HALF, s, kind) == pytest.approx((spent - inside) / math.log(2), abs=1e-9)


def test_one_hill_has_gaussian_kernels() -> None:
    """Of a normal law every reverse kernel is normal, at any size of a step: nothing is lost with the right variance."""
    one = torch.ones(1, dtype=torch.float64)
    hill = MixtureOracle(means=one[:, None] * 0.3, variances=0.5 * one, weights=one)
    for beta in (0.5, 0.1):
        s = module.level_before(PROCESS, HALF, beta)
        assert module.step_kl_bits(hill, PROCESS, HALF, s, "matched") == pytest.approx(0, abs=1e-12)
    assert module.predicted(hill, HALF)["matched"] == pytest.approx(0, abs=1e-20)
    chain = module.run_chain(hill, PROCESS, 3, "matched")
    assert chain.total_variation < 1e-3, "and a chain of three steps draws the law but for the prior's mismatch"


@pytest.mark.parametrize("kind", module.KINDS)
def test_theory_says_what_the_smallest_step_costs(kind: str) -> None:
    beta = 2e-3
    measured = module.step_kl_bits(LAW, PROCESS, HALF, module.level_before(PROCESS, HALF, beta), kind)
    assert measured == pytest.approx(module.predicted(LAW, HALF)[kind] * beta ** module.order(kind), rel=0.02)


def test_a_chain_draws_what_the_sampler_draws() -> None:
    """The propagated law at T = 5 against 20,000 samples of ``Ancestral``, whose last step is the belief."""
    count, steps = 20_000, 5
    noise = BlockNoise(key=(1,), count=count)
    x = noise.at(0).normal(torch.zeros(count, 1, dtype=torch.float64))
    for step in sample(Ancestral(), LAW, PROCESS, x, [i / steps for i in range(steps, -1, -1)], noise.at(1)):
        x = step.x
    edges = torch.linspace(-2, 2, 41, dtype=torch.float64)
    hits = torch.histc(x, 40, -2, 2) / count
    cumulative = torch.cat([torch.zeros(1), LAW._tails(edges, DATA)[0]])  # P(x < edge) of the truth
    truth = cumulative[1:].diff()
    binned = (hits - truth).abs().sum().item() / 2
    chain = module.run_chain(LAW, PROCESS, steps, "beta_tilde")
    assert binned < chain.total_variation + 0.02
    assert binned > 0.85 * chain.total_variation, "bins of 0.1 blur the distance a little"


def test_the_densities_have_mass_one() -> None:
    chain = module.run_chain(LAW, PROCESS, 2, "beta")
    assert chain.density is not None
    assert chain.density.sum().item() * 2 * module._REACH / (module._POINTS - 1) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_experiment_shows_what_it_is_to_show(tmp_path: Path) -> None:
    report = module.small_steps(seed=0, advance=lambda stage, done, total: None)
    assert not report.failures
    figures = report.figures
    for kind in module.KINDS:
        assert figures[f"power_{kind}"] == pytest.approx(figures[f"power_{kind}_theory"], abs=0.02)
        assert figures[f"measured_over_theory_{kind}"] == pytest.approx(1, abs=0.02)
    rows = {row["T"]: row for row in figures["chains"]}
    assert rows[1]["total_variation_matched"] > 0.4
    assert rows[100]["total_variation_matched"] < 0.005
    assert rows[100]["total_variation_beta"] > 5 * rows[100]["total_variation_matched"]
    report.draw(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_a_short_run_has_the_form_of_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHAINS", (1, 2))
    monkeypatch.setattr(module, "_ANSWERED", (1, 2))
    told = module.small_steps(seed=5, advance=lambda stage, done, total: None)
    assert [row["T"] for row in told.figures["chains"]] == [1, 2]
    assert len(told.figures["kernels"]) == len(module.STEPS)
    assert told.figures["kernels"][0]["beta_tilde"] is None, "the step to the data has no variance of this kind"
    assert not told.failures
    assert any("infinite" in line for line in told.lines)

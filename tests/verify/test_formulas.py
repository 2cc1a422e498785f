"""Formulas written a second time: they say what our samplers do, and notice what broken ones do."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import SAMPLERS
from unstir.diffusion.schedule import Cosine, VarianceExploding
from unstir.verify.formulas import FORMULAS, VARIANCES, Call, ancestral, ddim, dpm_solver_2m, heun
from unstir.verify.oracles import GaussianOracle
from unstir.verify.outcome import made
from unstir.verify.statements import formula_of_a_step
from unstir.verify.suite import _OURS
from unstir.verify.target import targets_of

ORACLE = GaussianOracle(mean=torch.tensor(-0.5, dtype=torch.float64), variance=torch.tensor(0.25, dtype=torch.float64))


def calls_of(times: list[float], schedule: Cosine | VarianceExploding) -> list[Call]:
    """Calls at exact points of the probability flow."""
    levels = schedule.at(torch.tensor(times, dtype=torch.float64))
    start = torch.tensor([[0.7], [-1.1]], dtype=torch.float64)
    calls = []
    for i in range(len(times)):
        x = ORACLE.flow(start, levels[0], levels[i])
        x0 = ORACLE(x, levels[i]).x0
        calls.append(Call(x=x, alpha=levels[i].alpha.item(), sigma=levels[i].sigma.item(), x0=x0))
    return calls


@pytest.mark.parametrize(
    ("name", "order"),
    [("ddim", 1), ("dpm++2m", 2), ("dpm++3m", 3), ("unipc", 2), ("deis", 3), ("plms", 1)],
)
def test_local_errors_have_one_order_more(name: str, order: int) -> None:
    """From exact points, a step of length h errs by h^(order + 1), after steps of other lengths."""
    errors = []
    for h in (0.02, 0.01, 0.005):
        calls = calls_of([0.5 + 3 * h, 0.5 + 1.5 * h, 0.5 + h, 0.5, 0.5 - h], Cosine())
        (*_, (wanted, found)) = FORMULAS[name](calls)
        errors.append((wanted - found).abs().max().item())
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order + 1, abs=0.15)


WALKED = {name: formula for name, formula in _OURS.items() if formula in FORMULAS and name != "euler"}


@pytest.mark.parametrize("name", WALKED)
def test_no_sampler_takes_the_steps_of_another(name: str) -> None:
    """A watched run has the steps of its own formula and of no other, so that C16 tells them apart."""
    target = next(
        target for target in targets_of(name, SAMPLERS[name](), WALKED[name]) if isinstance(target.schedule, Cosine)
    )
    for formula in WALKED.values():
        claimed = replace(target, promise=replace(target.promise, formula=formula))
        outcome = made(lambda claimed=claimed: formula_of_a_step(claimed))  # a crash is a failure too
        assert outcome.status == ("passed" if formula == WALKED[name] else "failed"), formula


def test_heun_is_of_second_order() -> None:
    """Its guess is Euler's, and its step from exact points errs by h^3."""
    errors = []
    for h in (0.004, 0.002, 0.001):
        t, s = calls_of([0.03 + h, 0.03], VarianceExploding())
        guess = replace(s, x=next(ddim([t, s]))[0])
        guess = replace(guess, x0=ORACLE(guess.x, level(s)).x0)
        first, second = heun([t, guess, s])
        torch.testing.assert_close(first[0], guess.x)
        errors.append((second[0] - second[1]).abs().max().item())
    assert math.log2(errors[1] / errors[2]) == pytest.approx(3, abs=0.2)


def level(call: Call):
    from unstir.verify.target import level_of

    return level_of(torch.tensor(call.alpha), torch.tensor(call.sigma))


def test_the_second_order_formula_notices_an_inverted_ratio() -> None:
    calls = calls_of([0.7, 0.5, 0.45], Cosine())
    h, before = (math.log(s.alpha / s.sigma) - math.log(t.alpha / t.sigma) for t, s in (calls[1:], calls[:2]))
    wanted = list(dpm_solver_2m(calls))[1][0]
    for r, close in ((before / h, True), (h / before, False)):
        direction = (1 + 1 / (2 * r)) * calls[1].x0 - 1 / (2 * r) * calls[0].x0
        step = calls[2].sigma / calls[1].sigma * calls[1].x - calls[2].alpha * math.expm1(-h) * direction
        assert torch.allclose(step, wanted, rtol=1e-9) is close


def test_the_first_step_may_start_from_pure_noise() -> None:
    start = Call(x=torch.ones(1, 1), alpha=0.0, sigma=1.0, x0=torch.full((1, 1), 0.5))
    following = Call(x=torch.ones(1, 1), alpha=0.6, sigma=0.8, x0=torch.zeros(1, 1))
    last = Call(x=torch.ones(1, 1), alpha=0.8, sigma=0.6, x0=torch.zeros(1, 1))
    for formula in (ddim, dpm_solver_2m):
        for wanted, _ in formula([start, following, last]):
            assert wanted.isfinite().all()


def test_clipped_beliefs_change_the_noise() -> None:
    (t, s) = calls_of([0.6, 0.4], Cosine())
    t = replace(t, x0=torch.full_like(t.x, 3.0))
    ((wanted, _),) = ddim([t, s], clip=1.0)
    noise = (t.x - t.alpha * 1.0) / t.sigma
    torch.testing.assert_close(wanted, s.alpha * 1.0 + s.sigma * noise)


@pytest.mark.parametrize("schedule", [Cosine(), VarianceExploding()])
def test_the_reverse_chain_is_the_process_posterior(schedule: Cosine | VarianceExploding) -> None:
    process = GaussianProcess(schedule=schedule)
    times = [0.9, 0.5, 0.2]
    levels = schedule.at(torch.tensor(times, dtype=torch.float64))
    calls = calls_of(times, schedule)
    for i, (t, s) in enumerate(pairwise(calls)):
        weight, share, beta, small = ancestral(t, s)
        for fraction, variance in ((None, VARIANCES["ancestral"]), (1.0, VARIANCES["ancestral, large variance"])):
            exact = process.reverse(t.x, levels[i], levels[i + 1], Estimate(x0=t.x0, variance_fraction=fraction))
            torch.testing.assert_close(weight * t.x + share * t.x0, exact.mean)
            torch.testing.assert_close(torch.as_tensor(exact.std) ** 2, torch.tensor(variance(beta, small)).double())

"""The statements: what holds for every sampler, each with the experiment that shows it.

Knows: what is true of any correct way from noise to data, how it is measured, and how far rounding or chance may go.
Does not know: whose target it is, or how results are told.

The numbers C1 to C43 are those of a list of bugs that other tools had; a statement is what such a bug breaks. Each
takes nothing but a ``Target`` and watches it through the denoiser, so it cannot be passed by reading the code.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level
from unstir.typing import X
from unstir.verify import drawing, mathematics
from unstir.verify.formulas import FORMULAS, VARIANCES, ancestral, ddim
from unstir.verify.observe import Call, Pattern, certain, is_at, log_snrs, observe, visited
from unstir.verify.oracles import GaussianOracle, MixtureOracle
from unstir.verify.outcome import Outcome, failed_if, not_applicable, told
from unstir.verify.target import Remakes, Spoils, Target

_GRIDS = (*range(1, 129), 250, 333, 500, 999, 1000)
_RUNS = (20, 50, 1, 2, 3, 7, 10, 13)
_UNEVEN = (7, 13, 53)  # do not divide 1000
_HALVING = (20, 40, 100, 200)  # divide 1000, so that a grid of whole steps stays even, and have a tenth
_MANY = 65536  # numbers that a spread is measured on
_SOME = 4096  # numbers that a share is measured on, for there the truth may be large
_FAR = 5.0  # standard errors that chance may go

_GAUSSIAN = GaussianOracle(
    mean=torch.tensor(-0.5, dtype=torch.float64), variance=torch.tensor(0.25, dtype=torch.float64)
)
_MIXTURE = MixtureOracle(
    means=torch.tensor([[-0.8], [0.9]], dtype=torch.float64),
    variances=torch.tensor([0.3, 0.15], dtype=torch.float64),
    weights=torch.tensor([0.4, 0.6], dtype=torch.float64),
)
_STARTS = torch.tensor([[-1.6], [-0.7], [0.4], [1.3]], dtype=torch.float64)  # standard normal numbers, roughly


def next_level(target: Target) -> Outcome:
    """With a certain belief a step is x_s = a x_t + b x0; a and b tell from which level to which it goes."""
    is_stochastic = target.promise.is_stochastic
    shape, scale = ((1, 1, _SOME), 400.0) if is_stochastic else ((2, 1, 32), target.promise.clip or 1.0)
    pattern = Pattern.of(*shape, scale=scale if is_stochastic else scale / 4)
    found: list[str] = []
    worst = 0.0
    for num_steps in _allowed(target, _UNEVEN):
        run = observe(target, certain(pattern.x0), pattern.at(target.levels(num_steps)[0]), num_steps)
        wrong = 0
        for t, s in pairwise(run.calls):
            off = _drawn_off(pattern, s, scale) if is_stochastic else _off(pattern, t, s)
            wrong += not off <= target.promise.tolerance
            worst = _worse(worst, off)
        if wrong:
            found.append(f"{wrong} of {len(run.calls) - 1} steps at N = {num_steps}")
    measured = f"{', '.join(found)}, by up to {worst:.2g}" if found else f"off by {worst:.1g}"
    return failed_if(found, measured, "no step ends elsewhere")


def number_of_steps(target: Target) -> Outcome:
    """As many levels, and as many steps run, as were asked for."""

    def probe(num_steps: int) -> str | None:
        grid = target.levels(num_steps)
        count = grid.sigma.numel() - 1
        if count == num_steps and num_steps in _RUNS:
            pattern = Pattern.of(2, 1, 4)
            count = len(visited(observe(target, certain(pattern.x0), pattern.at(grid[0]), num_steps).calls, grid))
        return None if count == num_steps else f"{count} steps"

    return _for_each(_allowed(target, _GRIDS), probe, "N steps")


def within_training(target: Target) -> Outcome:
    """No level noisier or cleaner than those of training, for few steps, for one less than all, and for all."""
    total = target.trained.sigma.numel()
    ends = log_snrs(target.trained)
    counts = [1, 3, 9, 27] + ([total - 1, total] if total > 2 else [])

    def probe(num_steps: int) -> str | None:
        inside = log_snrs(target.levels(num_steps))[:-1]
        slack = 10 * target.promise.tolerance
        outside = [value for value in inside if not ends[-1] - slack <= value <= ends[0] + slack]
        if outside:
            return f"log-SNR {outside[0]:.4g} outside {ends[-1]:.4g} to {ends[0]:.4g}"
        pattern = Pattern.of(2, 1, 4)
        end = observe(target, certain(pattern.x0), pattern.at(target.levels(num_steps)[0]), num_steps).end
        return None if bool(end.isfinite().all()) else "not finite"

    return _for_each(counts, probe, "levels within those of training, and a finite result")


def noisiest_first(target: Target) -> Outcome:
    """The first step starts where training ended."""
    wanted = _ratio(target.trained[-1])
    slack = 1 + 100 * target.promise.tolerance

    def probe(num_steps: int) -> str | None:
        found = _ratio(target.levels(num_steps)[0])
        return None if found == wanted or wanted / slack < found < wanted * slack else f"sigma/alpha = {found:.4g}"

    return _for_each(_allowed(target, _RUNS), probe, f"sigma/alpha = {wanted:.4g}")


def by_position(target: Target) -> Outcome:
    """The levels fall strictly, and a run visits each of them once, in order."""

    def probe(num_steps: int) -> str | None:
        grid = target.levels(num_steps)
        values = log_snrs(grid)[:-1]  # where the last one leads is another statement's business
        repeated = sum(not after > before for before, after in pairwise(values))
        if repeated:
            return f"{repeated} levels do not fall"
        if num_steps not in _RUNS:
            return None
        pattern = Pattern.of(2, 1, 4)
        order = visited(observe(target, certain(pattern.x0), pattern.at(grid[0]), num_steps).calls, grid)
        return None if order == list(range(num_steps)) else f"visited {_short(order)}"

    return _for_each(_allowed(target, _GRIDS), probe, "levels 0, 1, ..., N - 1, falling")


def strided_mean(target: Target) -> Outcome:
    """The mean of a long step has the coefficients that the betas of the grid give."""
    if target.promise.formula not in VARIANCES:
        return not_applicable("the target does not say that it walks the reverse chain")
    worst = 0.0
    for t, s, pattern in _steps_of_chain(target):
        weight, share, beta, small = ancestral(t, s)
        rest = s.x - weight * t.x - share * pattern.x0
        std = math.sqrt(VARIANCES[target.promise.formula](beta, small))
        basis: Tensor = torch.stack([t.x.flatten(), pattern.x0.flatten()], 1)
        inverse = cast("Tensor", torch.linalg.inv(basis.T @ basis))
        slips = inverse @ basis.T @ rest.flatten()
        chance = std * inverse.diagonal().sqrt() + target.promise.tolerance
        worst = _worse(worst, (slips / chance).abs().max().item())
    expected = f"at most {_FAR:.0f} standard errors from the exact coefficients"
    return failed_if(not worst <= _FAR, f"{worst:.2g} standard errors", expected)


def posterior_variance(target: Target) -> Outcome:
    """The spread of a step is that of the posterior."""
    formula = target.promise.formula
    if formula not in VARIANCES:
        return not_applicable("the target does not say that it walks the reverse chain")
    worst = 0.0
    for t, s, pattern in _steps_of_chain(target):
        weight, share, beta, small = ancestral(t, s)
        rest = s.x - weight * t.x - share * pattern.x0
        worst = _worse(worst, abs(rest.square().mean().item() / VARIANCES[formula](beta, small) - 1))
    limit = _FAR * math.sqrt(2 / _MANY) + 10 * target.promise.tolerance
    return failed_if(not worst <= limit, f"variance off by {worst:.2g}", f"off by at most {limit:.2g} (chance)")


def whole_chain(target: Target) -> Outcome:
    """With as many steps as the training chain has, the levels are its own; a shift is applied once."""
    total = target.trained.sigma.numel()
    if not target.promise.visits_table or total <= 2:
        return not_applicable("the grid of all steps is not promised to be the training chain")
    grid = target.levels(total)
    if grid.sigma.numel() != total + 1:
        return failed_if(True, f"{grid.sigma.numel() - 1} levels", f"{total} levels")
    found, wanted = _shares(grid)[:-1], _shares(target.trained).flip(0)
    off = (found - wanted).abs()
    where = int(off.argmax().item())
    measured = f"noise share {found[where].item():.5g} at step {where + 1}"
    return failed_if(
        off.max().item() > target.promise.tolerance, measured, f"{wanted[where].item():.5g}, as in training"
    )


def ways_agree(target: Target) -> Outcome:
    """The same grid, asked for by times or by noise levels, is the same grid."""
    if not isinstance(target, Remakes):
        return not_applicable("the grid can be asked for in one way only")
    ways = target.remake(10)
    if not ways:
        return not_applicable("the grid can be asked for in one way only")
    wanted = _shares(target.levels(10))
    off = {name: _distance(_shares(level), wanted) for name, level in ways.items()}
    name = max(off, key=lambda key: off[key])
    measured = f"noise share off by {off[name]:.2g} when asked for by {name}"
    return failed_if(not off[name] <= 10 * target.promise.tolerance, measured, "the same levels")


def half_precision(target: Target) -> Outcome:
    """Noise of the smallest level is still noise when the sample is in half precision."""
    if not isinstance(target, Spoils):
        return not_applicable("the target does not add noise itself")
    num_steps = 100
    level = target.levels(num_steps)[num_steps - 1]
    worst, at = 1.0, "half precision"
    for dtype in (torch.float16, torch.bfloat16):
        noise = Pattern.of(2, 1, 256).noise.to(dtype)
        spoiled = target.spoil(torch.zeros_like(noise), noise, num_steps, num_steps - 1).double()
        share = spoiled.square().mean().sqrt().item() / level.sigma.item()
        if not abs(share - 1) <= abs(worst - 1):
            worst, at = share, str(dtype).removeprefix("torch.")
    return failed_if(not 0.5 < worst < 2, f"{worst:.3g} of sigma = {level.sigma.item():.3g} in {at}", "1 of sigma")


def source_comes_back(target: Target) -> Outcome:
    """Added noise is that of the level, and solving from there with a certain belief gives the source."""

    def probe(num_steps: int) -> str | None:
        starts = range(num_steps) if target.promise.starts_late else range(1)
        wrong = max((_spoiled_off(target, num_steps, start), -start) for start in starts)
        if not wrong[0] <= target.promise.tolerance:
            return f"noise of another level, off by {wrong[0]:.2g}, at step {-wrong[1]}"
        off = max((_residual(target, num_steps, start), -start) for start in starts)
        return None if off[0] <= target.promise.tolerance else f"off by {off[0]:.2g} from step {-off[1]}"

    return _for_each(_allowed(target, (10, 13, 1, 2, 3)), probe, "the source, to rounding")


def order_of_convergence(target: Target) -> Outcome:
    """The distance to the exact probability flow falls as fast as is promised when steps are halved."""
    promise = target.promise
    if promise.is_stochastic or promise.clip is not None:
        return not_applicable("a target that draws, or clips, follows no exact flow")
    slopes = {name: _slope(target, law) for name, law in (("Gaussian", _GAUSSIAN), ("mixture", _MIXTURE))}
    measured = ", ".join(f"{slope:.2f} ({name})" for name, slope in slopes.items())
    if promise.order is None:
        return not_applicable("no order of convergence is promised", measured)
    return failed_if(not min(slopes.values()) >= promise.order - 0.3, f"order {measured}", f"order {promise.order}")


def formula_of_a_step(target: Target) -> Outcome:
    """Every step of a run on unequal steps is the one that the paper gives, in every digit."""
    formula = target.promise.formula
    if formula not in FORMULAS or target.promise.clip is not None:
        return not_applicable("no formula is promised, or none is known here")
    worst, at = 0.0, 0
    for law in (_GAUSSIAN, _MIXTURE):
        run = observe(target, law, _on_level(law, target.levels(10)[0]), 10)
        for i, (wanted, found) in enumerate(FORMULAS[formula](run.calls)):
            off = ((wanted - found).abs().max() / wanted.abs().max().clamp(min=1)).item()
            if not off <= worst:
                worst, at = off, i + 1
    measured = f"off by {worst:.2g} at step {at} of 10" if worst else "equal"
    return failed_if(not worst <= target.promise.tolerance, measured, "equal to rounding")


def ends_at_the_belief(target: Target) -> Outcome:
    """The last step goes to sigma = 0 and returns the last belief, once."""

    def probe(num_steps: int) -> str | None:
        last = target.levels(num_steps)[-1]
        if last.sigma.item() != 0:
            return f"ends at sigma = {last.sigma.item():.2g}"
        law = certain(torch.full((1,), 0.25, dtype=torch.float64)) if target.promise.clip is not None else _MIXTURE
        run = observe(target, law, _on_level(_MIXTURE, target.levels(num_steps)[0]), num_steps)
        off = (run.end - run.calls[-1].x0).abs().max().item()
        return None if off <= target.promise.tolerance else f"{off:.2g} from the last belief"

    return _for_each(_allowed(target, (*_RUNS, 53)), probe, "the last belief, at sigma = 0")


def finite_for_every_number(target: Target) -> Outcome:
    """No number of steps makes infinities, or crashes, with a belief that is bounded and no better than a guess."""

    def guess(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=x_t.clamp(-1, 1))

    def probe(num_steps: int) -> str | None:
        x = _on_level(_GAUSSIAN, target.levels(num_steps)[0]).view(1, 1, -1)
        with torch.no_grad():
            end = target.run(guess, x, num_steps, KeyedNoise.from_seeds([0]))
        return None if bool(end.isfinite().all()) else "not finite"

    return _for_each(_allowed(target, range(1, 51)), probe, "finite for N = 1 to 50")


def clipped_noise(target: Target) -> Outcome:
    """Where a target clips beliefs, the noise that it goes on with is that of the clipped belief."""
    clip = target.promise.clip
    if clip is None or target.promise.formula not in ("ddim", "ddim of v"):
        return not_applicable("the target does not clip beliefs itself")
    truth = torch.linspace(-2 * clip, 2 * clip, 8, dtype=torch.float64).view(2, 1, 4)
    pattern = Pattern(x0=truth, noise=Pattern.of(2, 1, 4).noise)
    run = observe(target, certain(truth), pattern.at(target.levels(10)[0]), 10)
    off = max(((wanted - found).abs().max().item(), i) for i, (wanted, found) in enumerate(ddim(run.calls, clip), 1))
    return failed_if(not off[0] <= target.promise.tolerance, f"off by {off[0]:.2g} at step {off[1]} of 10", "equal")


def keeps_nothing(target: Target) -> Outcome:
    """A used target gives what it gave at first: after other grids, other sizes, and a run that was broken off."""
    x = _on_level(_GAUSSIAN, target.levels(7)[0])
    first = observe(target, _GAUSSIAN, x, 7).end
    found: list[str] = []

    def after(what: str) -> None:
        if not _same(observe(target, _GAUSSIAN, x, 7).end, first):
            found.append(what)

    after("the same run")
    observe(target, _GAUSSIAN, _on_level(_GAUSSIAN, target.levels(4)[0]).repeat(3, 1), 4)
    after("another batch and N")
    pattern = Pattern.of(2, 1, 8, 8)
    observe(target, certain(pattern.x0), pattern.at(target.levels(5)[0]), 5)
    after("another resolution")
    _break_off(target, 7, 3)
    after("a run that broke off")
    return failed_if(found, "another result after " + ", ".join(found) if found else "equal", "bit for bit the same")


def threads(target: Target) -> Outcome:
    """Eight threads that share the target, always in step with each other, get what they get one after another."""
    num_steps, count = 6, 8
    level = target.levels(num_steps)[0]
    starts = [level.alpha * _GAUSSIAN.mean + _GAUSSIAN.std(level) * _STARTS * (1 + i / 4) for i in range(count)]
    alone = [observe(target, _GAUSSIAN, x, num_steps).end for x in starts]
    barrier = threading.Barrier(count)

    def in_step(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        with suppress(threading.BrokenBarrierError):  # one thread left, or the target lets only one in at a time
            barrier.wait(timeout=1.0)
        return _GAUSSIAN(x_t, level)

    def run(x: Tensor) -> Tensor | None:
        try:
            return observe(target, in_step, x, num_steps).end
        except Exception:  # whatever a mixed-up state leads to
            barrier.abort()
            return None

    with ThreadPoolExecutor(count) as pool:
        together = list(pool.map(run, starts))
    wrong = sum(end is None or not _same(end, x) for end, x in zip(together, alone, strict=True))
    return failed_if(wrong, f"{wrong} of {count} threads got another result", "0 of 8")


def noise_of_a_step(target: Target) -> Outcome:
    """What draws keeps the spread of its level, adds nothing at the end, and draws for each sample by itself."""
    if not target.promise.is_stochastic:
        return not_applicable("the target does not draw")
    found: list[str] = []
    pattern = Pattern.of(1, 1, _MANY)
    run = observe(target, certain(pattern.x0), pattern.at(target.levels(10)[0]), 10)
    if target.promise.formula != "ancestral, large variance":
        off = [pattern.place(call.x).sigma / call.sigma - 1 for call in run.calls]
        worst = max(off, key=abs)
        if not abs(worst) <= _FAR / math.sqrt(2 * _MANY) + target.promise.tolerance:
            found.append(f"spread off by {worst:+.2g}")
    left = (run.end - pattern.x0).square().mean().sqrt().item()
    if not left <= target.promise.tolerance:
        found.append(f"noise of {left:.2g} is left at the end")
    found += _shared_noise(target)
    return failed_if(found, "; ".join(found) or "kept", "sigma of the level; no noise at the end; each row its own")


def velocity(target: Target) -> Outcome:
    """A target that is told v steps as one that is told x0; the sign is that of x0 = alpha x_t - sigma v."""
    if target.promise.formula != "ddim of v":
        return not_applicable("the target is not told v")
    outcome = formula_of_a_step(target)
    return Outcome(status=outcome.status, measured=outcome.measured, expected="the step of x0 = alpha x_t - sigma v")


def started_late(target: Target) -> Outcome:
    """Started in the middle, a target runs exactly the steps that are left."""
    if not target.promise.starts_late:
        return not_applicable("the target always starts at the beginning")

    def probe(num_steps: int) -> str | None:
        grid = target.levels(num_steps)
        pattern = Pattern.of(2, 1, 4)
        for start in sorted({1, num_steps // 2, num_steps - 1}):
            run = observe(target, certain(pattern.x0), pattern.at(grid[start]), num_steps, start=start)
            order = visited(run.calls, grid)
            if order != list(range(start, num_steps)):
                return f"from step {start} visited {_short(order)}"
        return None

    return _for_each(_allowed(target, (5, 10, 13)), probe, "steps k, k + 1, ..., N - 1")


def no_noise_is_left(target: Target) -> Outcome:
    """When only the last few steps of a grid are run, no noise is left either."""
    if not target.promise.starts_late:
        return not_applicable("the target always starts at the beginning")

    def probe(executed: int) -> str | None:
        left = _residual(target, 20, 20 - executed)
        return None if left <= target.promise.tolerance else f"{left:.2g} is left"

    return _for_each((1, 2, 3, 4), probe, "nothing left", what="last steps")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sentence that is true or false of a target, and of our own mathematics.

    Args:
        sentence: what is stated.
        on_target: the experiment on a target, or None where it is not about one.
        on_unstir: the experiment on our own mathematics, or None.
    """

    sentence: str
    on_target: Callable[[Target], Outcome] | None = None
    on_unstir: Callable[[], Outcome] | None = None


STATEMENTS: dict[str, Statement] = {
    "C1": Statement(sentence="Every step ends at the level where the next one starts.", on_target=next_level),
    "C2": Statement(sentence="N steps asked for are N steps run.", on_target=number_of_steps),
    "C3": Statement(
        sentence="Every level is one of training, for every N up to all of its steps.", on_target=within_training
    ),
    "C4": Statement(sentence="The first step starts at the noisiest level of training.", on_target=noisiest_first),
    "C5": Statement(sentence="Levels fall strictly and are visited once each, in order.", on_target=by_position),
    "C6": Statement(sentence="A long step of the reverse chain has the mean of its own betas.", on_target=strided_mean),
    "C7": Statement(sentence="A step of the reverse chain has the posterior's variance.", on_target=posterior_variance),
    "C8": Statement(
        sentence="Zero terminal SNR is exact, everything finite there, noise prediction refused.",
        on_unstir=mathematics.zero_terminal_snr,
    ),
    "C9": Statement(
        sentence="All steps of the chain are the chain of training; a shift is applied once.", on_target=whole_chain
    ),
    "C10": Statement(
        sentence="Custom times and custom noise levels describe the same grid.",
        on_target=ways_agree,
        on_unstir=mathematics.ways_to_ask,
    ),
    "C11": Statement(sentence="The smallest noise survives in half precision.", on_target=half_precision),
    "C12": Statement(
        sentence="Noise added and removed with a certain belief gives back the source.", on_target=source_comes_back
    ),
    "C13": Statement(
        sentence="Inversion asks at the levels that sampling asks at, and sampling leads back.",
        on_unstir=mathematics.inversion,
    ),
    "C14": Statement(sentence="The error falls with the promised order.", on_target=order_of_convergence),
    "C15": Statement(
        sentence="2M takes a step's own length; the last one's in its place costs an order.",
        on_unstir=mathematics.steps_of_their_own_length,
    ),
    "C16": Statement(sentence="Every step is the one of the paper's formula.", on_target=formula_of_a_step),
    "C17": Statement(sentence="The last step, to sigma = 0, returns the belief.", on_target=ends_at_the_belief),
    "C18": Statement(sentence="The result is finite for every N from 1 to 50.", on_target=finite_for_every_number),
    "C19": Statement(
        sentence="DDIM's noise is that of the clipped belief; eta = 1 is the reverse chain.",
        on_target=clipped_noise,
        on_unstir=mathematics.ddim_identities,
    ),
    "C20": Statement(sentence="No state survives a run.", on_target=keeps_nothing),
    "C21": Statement(
        sentence="Eight threads that share it get what one gets.",
        on_target=threads,
        on_unstir=drawing.threads_share_a_model,
    ),
    "C22": Statement(
        sentence="Drawn noise keeps the level's spread, is each row's own, and is not added at the end.",
        on_target=noise_of_a_step,
    ),
    "C22b": Statement(
        sentence="x0 = alpha x_t - sigma v, with the minus.", on_target=velocity, on_unstir=mathematics.velocity_sign
    ),
    "C23": Statement(
        sentence="Guidance is affine in its scale; 0 and 1 are the two beliefs bit for bit.",
        on_unstir=mathematics.guidance_is_affine,
    ),
    "C24": Statement(
        sentence="Nothing is dropped in drawing; two identical calls are equal.", on_unstir=drawing.nothing_is_dropped
    ),
    "C25": Statement(
        sentence="Guidance acts on every channel, in each of its kinds.", on_unstir=drawing.guidance_on_all_channels
    ),
    "C26": Statement(
        sentence="Rescaled guidance reaches every sampler, and no contrast is no infinity.",
        on_unstir=drawing.rescaling_reaches_all,
    ),
    "C27": Statement(sentence="Sampling's null is the null of training.", on_unstir=drawing.one_null),
    "C28": Statement(
        sentence="What is dropped has no influence at all, and as often as was asked for.",
        on_unstir=drawing.dropped_has_no_influence,
    ),
    "C29": Statement(
        sentence="Strength 0 is the picture, strength 1 is text to picture, bit for bit.",
        on_unstir=drawing.ends_of_strength,
    ),
    "C30": Statement(sentence="Started in the middle, exactly the remaining steps are run.", on_target=started_late),
    "C31": Statement(sentence="No noise is left when only few steps are run.", on_target=no_noise_is_left),
    "C32": Statement(
        sentence="What is not painted stays bit for bit; no painted pixel is lost.", on_unstir=drawing.kept_pixels
    ),
    "C33": Statement(
        sentence="A weight is one of the error on x0, whatever the network predicts.",
        on_unstir=mathematics.weights_are_invariant,
    ),
    "C43": Statement(
        sentence="Training times cover their range evenly, both ends included.",
        on_unstir=mathematics.times_cover_the_range,
    ),
}


def _allowed(target: Target, counts: Iterable[int]) -> list[int]:
    total = target.trained.sigma.numel()
    return [count for count in counts if total <= 2 or count <= total]


def _for_each(counts: Sequence[int], probe: Callable[[int], str | None], expected: str, *, what: str = "N") -> Outcome:
    found: dict[int, str] = {}
    for count in counts:
        try:
            problem = probe(count)
        except Exception as error:  # a crash is one of the ways to be wrong
            problem = told(error)
        if problem is not None:
            found[count] = problem
    if not found:
        return failed_if(False, f"{what} = {_short(sorted(counts))}: all", expected)
    first = next(iter(found))
    also = f" ({len(found)} of {len(counts)}: {_short(sorted(found))})" if len(found) > 1 else ""
    return failed_if(True, f"{found[first]} at {what} = {first}{also}", expected)


def _same(a: X, b: X) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _short(numbers: list[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]])


def _worse(worst: float, value: float) -> float:
    return value if not value <= worst else worst  # keeps a nan


def _off(pattern: Pattern, t: Call, s: Call) -> float:
    """How far the coefficients of a step are from those of the levels; errors of earlier steps do not count again."""
    here, there = pattern.place(t.x), pattern.place(s.x)
    least = 0.01 * (s.alpha + s.sigma)  # below it float32 has few digits of a share left
    factor, wanted = there.sigma / here.sigma, s.sigma / t.sigma
    sigma = abs(factor - wanted) * t.sigma / max(s.sigma, least)
    alpha = abs((there.alpha - factor * here.alpha) - (s.alpha - factor * t.alpha)) / max(s.alpha, least)
    return max(sigma, alpha, there.stray * s.sigma / max(s.sigma, least))


def _drawn_off(pattern: Pattern, s: Call, scale: float) -> float:
    """How far the share of the truth is from that of the level, beyond what chance explains."""
    if s.alpha == 0:
        return 0.0
    chance = _FAR * s.sigma / s.alpha / scale / math.sqrt(_SOME)
    off = abs(pattern.place(s.x).alpha / s.alpha - 1)
    return max(0.0, off - chance) if math.isfinite(off) else math.nan


def _steps_of_chain(target: Target) -> Iterable[tuple[Call, Call, Pattern]]:
    pattern = Pattern.of(1, 1, _MANY)
    run = observe(target, certain(pattern.x0), pattern.at(target.levels(10)[0]), 10)
    return [(t, s, pattern) for t, s in pairwise(run.calls)]


def _residual(target: Target, num_steps: int, start: int) -> float:
    scale = target.promise.clip or 1.0
    pattern = Pattern(x0=torch.full((2, 1, 4), 0.5 * scale, dtype=torch.float64), noise=Pattern.of(2, 1, 4).noise)
    level = target.levels(num_steps)[start]
    x = target.spoil(pattern.x0, pattern.noise, num_steps, start) if isinstance(target, Spoils) else pattern.at(level)
    end = observe(target, certain(pattern.x0), x, num_steps, start=start).end
    off = (end - pattern.x0).abs().max().item()
    return off if math.isfinite(off) else math.inf


def _spoiled_off(target: Target, num_steps: int, start: int) -> float:
    if not isinstance(target, Spoils):
        return 0.0
    pattern, level = Pattern.of(2, 1, 32), target.levels(num_steps)[start]
    place = pattern.place(target.spoil(pattern.x0, pattern.noise, num_steps, start))
    alpha, sigma = level.alpha.item(), level.sigma.item()
    least = 0.01 * (alpha + sigma)
    return max(abs(place.alpha - alpha) / max(alpha, least), abs(place.sigma - sigma) / max(sigma, least))


def _on_level(law: GaussianOracle | MixtureOracle, level: Level) -> X:
    if isinstance(law, GaussianOracle):
        return level.alpha * law.mean + law.std(level) * _STARTS
    data = law.means[[0, 0, 1, 1]] + 0.3 * _STARTS
    return level.alpha * data + level.sigma * _STARTS.flip(0)


def _slope(target: Target, law: GaussianOracle | MixtureOracle) -> float:
    """Minus the slope of log error against log N, over the inner four fifths of the grid.

    At the very ends the log-SNR of many schedules is infinite, and no number of steps makes the first one small.
    """
    floor = 1e-11 if target.promise.tolerance < 1e-5 else 3e-6
    errors = {num_steps: _error(target, law, num_steps) for num_steps in _HALVING}
    kept = {num_steps: error for num_steps, error in errors.items() if not error <= floor}
    if len(kept) < 2:
        return math.inf  # exact from the start
    if not all(math.isfinite(error) for error in kept.values()):
        return math.nan
    steps = torch.tensor(list(kept), dtype=torch.float64).log()
    logs = torch.tensor(list(kept.values()), dtype=torch.float64).log()
    steps = steps - steps.mean()
    return -((steps * logs).sum() / steps.square().sum()).item()


def _error(target: Target, law: GaussianOracle | MixtureOracle, num_steps: int) -> float:
    """The largest distance from the exact flow.

    A Gaussian's starts all err in proportion, and the error may change its sign: so at three points of the grid.
    """
    grid, tenth = target.levels(num_steps), num_steps // 10
    start = tenth if target.promise.starts_late else 0
    x = _on_level(law, grid[start])
    calls = observe(target, law, x, num_steps, start=start).calls
    worst = 0.0
    for point in (5 * tenth, 7 * tenth, 9 * tenth) if isinstance(law, GaussianOracle) else (9 * tenth,):
        there = [call for call in calls if is_at(call, grid[point])]
        if not there:
            raise ValueError(f"no belief was asked for at level {point} of {num_steps} steps")
        worst = _worse(worst, (there[-1].x - law.flow(x, grid[start], grid[point])).abs().max().item())
    return worst


def _shares(level: Level) -> Tensor:
    alpha, sigma = level.alpha.double(), level.sigma.double()
    return sigma / (alpha + sigma)


def _ratio(level: Level) -> float:
    alpha = level.alpha.item()
    return level.sigma.item() / alpha if alpha else math.inf


def _distance(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item() if a.shape == b.shape else math.inf


def _break_off(target: Target, num_steps: int, after: int) -> None:
    count = 0

    def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        nonlocal count
        count += 1
        if count > after:
            raise _BrokenOffError
        return _GAUSSIAN(x_t, level)

    try:
        observe(target, denoise, _on_level(_GAUSSIAN, target.levels(num_steps)[0]), num_steps)
    except _BrokenOffError:
        return


class _BrokenOffError(Exception):
    """Ends a run in the middle."""


def _shared_noise(target: Target) -> list[str]:
    noise = KeyedNoise.from_seeds([11, 12])
    pattern = Pattern.of(1, 1, 64)
    x = pattern.at(target.levels(5)[0])
    denoise: Denoiser = certain(pattern.x0)
    both = observe(target, denoise, torch.cat([x, x]), 5, noise=noise).calls[-1].x
    found = ["rows share their noise"] if torch.equal(both[0], both[1]) else []
    alone = observe(target, denoise, x, 5, noise=noise.rows(slice(1, 2))).calls[-1].x
    if not torch.allclose(alone[0], both[1], rtol=1e-6, atol=1e-9):
        found.append("a row's noise depends on the batch")
    return found

"""sd/diffusion.py against diffusers' schedulers with SD 1.5's settings, known values, and exact solutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sd.samplers import (
    Diffusion,
    Eps,
    ddim,
    ddpm,
    dpm_solver,
    leading_timesteps,
    solver_timesteps,
)

# scheduler/scheduler_config.json as published, less the fields that are PNDM's own.
PUBLISHED: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                             "num_train_timesteps": 1000, "steps_offset": 1, "trained_betas": None}
LEADING = PUBLISHED | {"clip_sample": False, "timestep_spacing": "leading"}
SHAPE = (2, 4, 3, 5)
STEPS = st.one_of(st.integers(1, 1000), st.sampled_from([1, 2, 3, 499, 500, 501, 999, 1000]))
ABAR = Diffusion().abar.double()

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'


def ddim_scheduler(steps: int, offset: int = 1) -> DDIMScheduler:
    scheduler = DDIMScheduler.from_config(LEADING | {"steps_offset": offset}, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    return scheduler


def ddpm_scheduler(steps: int, offset: int = 1) -> DDPMScheduler:
    scheduler = DDPMScheduler.from_config(LEADING | {"steps_offset": offset})
    scheduler.set_timesteps(steps)
    return scheduler


def solver_scheduler(steps: int, *, karras: bool) -> DPMSolverMultistepScheduler:
    """The published file names no timestep_spacing, so this scheduler's default applies: linspace."""
    scheduler = DPMSolverMultistepScheduler.from_config(PUBLISHED, use_karras_sigmas=karras)
    scheduler.set_timesteps(steps)
    return scheduler


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)


def wavy(z_t: Tensor, t: int) -> Tensor:
    """A noise prediction that is bounded, as a network's, and nonlinear in z_t and t."""
    return torch.sin(1.5 * z_t + t / 100)


def rng(i: int) -> torch.Generator:
    """Step i's generator. diffusers' steps draw their noise from the generator that they are given, by
    torch.randn in z's shape; `noise` draws the same from an equal one."""
    return torch.Generator().manual_seed(1000 + i)


def noise(i: int) -> Tensor:
    """The noise of step i for our samplers."""
    return torch.randn(SHAPE, generator=rng(i))


def trajectory(scheduler: Any, **options: Any) -> list[Tensor]:
    """diffusers' z after each step, from the same start by the same eps."""
    z, steps = start(), []
    for i, t in enumerate(scheduler.timesteps):
        z = scheduler.step(wavy(z, int(t)), t, z, generator=rng(i), **options).prev_sample
        steps.append(z)
    return steps


def assert_same_trajectory(ours: Iterator[Tensor], theirs: list[Tensor]) -> None:
    """Within 1e-4, relative to the largest latent of the step."""
    for z, expected in zip(ours, theirs, strict=True):
        assert_close(z, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


# ---- the noise schedule

def test_noise_schedule_equals_diffusers() -> None:
    assert torch.equal(Diffusion().abar, DDPMScheduler.from_config(LEADING).alphas_cumprod)


@pytest.mark.parametrize(("t", "abar"), [
    (0, 0.999149978), (1, 0.998296022), (21, 0.980380654), (100, 0.894223154), (500, 0.276332468),
    (981, 0.005775496), (999, 0.004660095)])
def test_noise_schedule_values(t: int, abar: float) -> None:
    assert ABAR[t].item() == pytest.approx(abar, abs=5e-10)


def test_add_noise_equals_diffusers() -> None:
    z_0, eps, t = start(), noise(0), torch.tensor([0, 999])
    theirs = DDPMScheduler.from_config(LEADING).add_noise(z_0, eps, t)
    assert torch.equal(Diffusion().add_noise(z_0, eps, t), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_add_noise_in_half_precision_rounds_once(dtype: torch.dtype) -> None:
    z_0, eps, t = start(dtype), noise(0).to(dtype), torch.tensor([21, 981])
    exact = Diffusion().add_noise(z_0.double(), eps.double(), t)
    actual = Diffusion().add_noise(z_0, eps, t)
    assert actual.dtype == dtype
    assert_close(actual.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


# ---- timesteps

@pytest.mark.parametrize(("steps", "expected"), [
    (50, list(range(981, 0, -20))), (25, list(range(961, 0, -40))), (20, list(range(951, 0, -50))),
    (10, list(range(901, 0, -100))), (30, list(range(958, 0, -33))), (1, [1]),
    (1000, list(range(999, -1, -1)))])
def test_leading_timesteps(steps: int, expected: list[int]) -> None:
    assert leading_timesteps(steps) == expected


def test_leading_timesteps_equal_diffusers() -> None:
    """At 1000 steps their shift would ask for a timestep 1000, which fails; ours leaves the shift out."""
    for steps in range(1, 1000):
        assert leading_timesteps(steps) == ddim_scheduler(steps).timesteps.tolist()
    assert leading_timesteps(1000) == ddpm_scheduler(1000, offset=0).timesteps.tolist()


@pytest.mark.parametrize("karras", [True, False])
def test_solver_timesteps_equal_diffusers(karras: bool) -> None:
    for steps in (*range(1, 61), 100, 333, 500, 999):
        scheduler = solver_scheduler(steps, karras=karras)
        timesteps, levels = solver_timesteps(steps, karras=karras)
        assert timesteps == scheduler.timesteps.tolist(), steps
        assert_close(torch.tensor(levels), scheduler.sigmas, rtol=1e-6, atol=0)


def test_solver_timesteps_values() -> None:
    timesteps, levels = solver_timesteps(20, karras=False)
    assert timesteps[:3] + timesteps[8:12] + timesteps[-1:] == [999, 949, 899, 599, 549, 500, 450, 50]
    assert levels[:3] + levels[-2:] == pytest.approx([14.6146, 10.9042, 8.3028, 0.2256, 0], abs=5e-5)
    timesteps, levels = solver_timesteps(20, karras=True)
    assert timesteps == [999, 962, 921, 876, 827, 772, 710, 640, 561, 474, 380, 285, 197, 123, 69, 35, 15, 6,
                         2, 0]
    assert levels == pytest.approx([14.6146, 11.7254, 9.3402, 7.3836, 5.7894, 4.4998, 3.4648, 2.6408, 1.9909,
                                    1.4832, 1.0908, 0.7909, 0.5647, 0.3964, 0.2730, 0.1842, 0.1213, 0.0779,
                                    0.0485, 0.0292, 0], abs=5.1e-5)


@given(steps=STEPS)
@settings(max_examples=50, deadline=None)
def test_timesteps_go_down(steps: int) -> None:
    """Strictly, but for Karras' levels: where they are dense, several round to one timestep."""
    leading = leading_timesteps(steps)
    assert len(leading) == steps and leading[0] <= 999 and leading[-1] >= 0
    assert all(a > b for a, b in zip(leading, leading[1:], strict=False))
    for karras in (True, False) if steps < 1000 else (True,):
        timesteps, levels = solver_timesteps(steps, karras=karras)
        assert len(timesteps) == steps == len(levels) - 1
        assert timesteps[0] == 999 and timesteps[-1] >= 0 and levels[-1] == 0
        assert all(a > b for a, b in zip(levels, levels[1:], strict=False))
        assert all(a >= b + (not karras) for a, b in zip(timesteps, timesteps[1:], strict=False))


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_numbers_of_steps(steps: int) -> None:
    for sampler in (ddim(wavy, start(), steps=steps), ddpm(wavy, start(), steps=steps, noise=noise),
                    dpm_solver(wavy, start(), steps=steps)):
        with pytest.raises(ValueError, match=f"{steps} sampling steps: 1 to 1000"):
            next(sampler)


def test_1000_linear_steps_are_refused() -> None:
    """They would have one timestep twice, and diffusers' answer is nan."""
    with pytest.raises(ValueError, match="1000 sampling steps: 1 to 999"):
        next(dpm_solver(wavy, start(), steps=1000, karras=False))


# ---- trajectories

@pytest.mark.parametrize("steps", [10, 20, 50, 1, 30, 600])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_diffusers(steps: int, eta: float) -> None:
    theirs = trajectory(ddim_scheduler(steps), eta=eta)
    assert_same_trajectory(ddim(wavy, start(), steps=steps, eta=eta, noise=noise), theirs)


@pytest.mark.parametrize("steps", [10, 20, 50, 1, 30, 600])
def test_ddpm_equals_diffusers(steps: int) -> None:
    assert_same_trajectory(ddpm(wavy, start(), steps=steps, noise=noise), trajectory(ddpm_scheduler(steps)))


def test_whole_chain_equals_diffusers() -> None:
    ours = ddpm(wavy, start(), steps=1000, noise=noise)
    assert_same_trajectory(ours, trajectory(ddpm_scheduler(1000, offset=0)))
    ours = ddim(wavy, start(), steps=1000, eta=1.0, noise=noise)
    assert_same_trajectory(ours, trajectory(ddim_scheduler(1000, offset=0), eta=1.0))


@pytest.mark.parametrize("steps", [10, 20, 50, 1, 2, 30, 250])
@pytest.mark.parametrize("karras", [True, False])
def test_dpm_solver_equals_diffusers(steps: int, karras: bool) -> None:
    theirs = trajectory(solver_scheduler(steps, karras=karras))
    assert_same_trajectory(dpm_solver(wavy, start(), steps=steps, karras=karras), theirs)


def half(z_t: Tensor, t: int) -> Tensor:
    return torch.full_like(z_t, 0.5)


def sine(z_t: Tensor, t: int) -> Tensor:
    return 0.9 * torch.sin(z_t)


ONE = torch.ones(1, dtype=torch.float64)


def test_one_ddim_step_by_hand() -> None:
    """From t = 981 (the first of 50 steps) and from t = 1 (the only one of one step)."""
    assert next(ddim(half, ONE)).item() == pytest.approx(1.0612256527, abs=1e-7)
    assert next(ddim(half, ONE, steps=1)).item() == pytest.approx(0.9943566918, abs=1e-7)


@pytest.mark.parametrize(("sampler", "first", "last"), [
    (ddim(sine, ONE, steps=20), [1.074077, 1.152262, 1.234378], [2.104667]),
    (dpm_solver(sine, ONE, steps=20), [1.058869, 1.123707, 1.199423], [3.172715, 3.174881])],
    ids=["ddim", "dpm_solver"])
def test_known_chains(sampler: Iterator[Tensor], first: list[float], last: list[float]) -> None:
    """Values computed once with diffusers' schedulers in float64 (facts sheet, section 9)."""
    chain = [z.item() for z in sampler]
    assert len(chain) == 20
    assert chain[:3] + chain[-len(last):] == pytest.approx(first + last, abs=1e-6)


# ---- exact solutions

def noise_of(z_0: Tensor) -> Eps:
    """The true noise in z_t, where all data is the one z_0."""
    return lambda z_t, t: (z_t - ABAR[t].sqrt() * z_0) / (1 - ABAR[t]).sqrt()


@given(steps=STEPS, eta=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_the_true_noise_keeps_every_step_true(steps: int, eta: float) -> None:
    """Every z_t of DDIM is z_0 with abar_t's noise: what it began with at eta 0, else some of variance 1."""
    z_0, e = start(torch.float64), noise(-1).double()
    t, *after = leading_timesteps(steps)
    z = Diffusion().add_noise(z_0, e, torch.tensor([t, t]))
    for other in (0.0, eta):
        zs = ddim(noise_of(z_0), z, steps=steps, eta=other, noise=lambda i: noise(i).double())
        left = torch.stack([noise_of(z_0)(z, t) for z, t in zip(zs, [*after, 0], strict=True)])
        if other == 0:
            assert_close(left, e.expand_as(left), rtol=0, atol=1e-5)
        assert_close(left.square().mean((1, 2, 3, 4)).sqrt(), torch.ones(steps).double(), rtol=0, atol=0.35)


@given(steps=STEPS)
@settings(max_examples=30, deadline=None)
def test_the_true_noise_leads_to_the_true_latents(steps: int) -> None:
    """DDIM ends with the noise of abar_0, a thirtieth of a standard deviation, the others without any."""
    z_0, e = start(torch.float64), noise(-1).double()
    eps, first = noise_of(z_0), leading_timesteps(steps)[0]
    z = Diffusion().add_noise(z_0, e, torch.tensor([first, first]))
    *_, end = ddim(eps, z, steps=steps)
    assert_close(end, ABAR[0].sqrt() * z_0 + (1 - ABAR[0]).sqrt() * e, rtol=0, atol=1e-6)
    *_, end = ddpm(eps, z, steps=steps, noise=lambda i: noise(i).double())
    assert_close(end, z_0, rtol=0, atol=1e-9)
    for karras in (True, False) if steps < 1000 else (True,):
        *_, end = dpm_solver(eps, e, steps=steps, karras=karras)
        assert_close(end, z_0, rtol=0, atol=1e-9)


# ---- manners

SAMPLERS: dict[str, Callable[[Eps, Tensor], Iterator[Tensor]]] = {
    "ddim": lambda eps, z: ddim(eps, z, steps=7),
    "ddim, eta 1": lambda eps, z: ddim(eps, z, steps=7, eta=1.0, noise=lambda i: noise(i).to(z.dtype)),
    "ddpm": lambda eps, z: ddpm(eps, z, steps=7, noise=lambda i: noise(i).to(z.dtype)),
    "karras": lambda eps, z: dpm_solver(eps, z, steps=7),
    "linear": lambda eps, z: dpm_solver(eps, z, steps=7, karras=False)}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_call_a_step_and_nothing_overwritten(
        sampler: Callable[[Eps, Tensor], Iterator[Tensor]], dtype: torch.dtype) -> None:
    """Nothing runs before it is asked for, and neither z_T nor what was yielded or predicted is changed."""
    asked: list[int] = []
    given_or_made = [(start(dtype), start(dtype))]  # each beside a copy

    def eps(z_t: Tensor, t: int) -> Tensor:
        assert type(t) is int
        asked.append(t)
        eps_hat = wavy(z_t, t)
        given_or_made.append((eps_hat, eps_hat.clone()))
        return eps_hat

    steps = sampler(eps, given_or_made[0][0])
    assert asked == []
    for count, z in enumerate(steps, 1):
        assert len(asked) == count and z.dtype == dtype
        given_or_made.append((z, z.clone()))
    assert len(asked) == 7
    assert all(torch.equal(tensor, copy) for tensor, copy in given_or_made)

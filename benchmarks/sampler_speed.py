"""Speed of lesson 09's samplers, with one network, beside those of diffusers, on the CPU.

    python benchmarks/sampler_speed.py > table.md

prints the tables of benchmarks/README.md in Markdown, its progress on stderr. The lesson's denoiser
is trained once and copied to torch; all samplers start from the same points and end in the same
way. Each has several settings, from few calls of the network to many. Compared are those with the
fewest calls whose samples cannot be told from true ones. Runs alternate, so that a change in the
load of the machine meets all. Needs diffusers and torch, which the course does not install.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlcourse_utils import diffusion, lessons, two_sample
from dlcourse_utils.datasets import two_moons
from dlcourse_utils.train import fit

try:
    import torch
    from common import compile_clock, conditions, parsed
    from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
except ImportError as error:
    sys.exit(
        f"This benchmark compares with diffusers, and {error.name} is missing: "
        "`pip install diffusers torch`, then run it again."
    )

N_TRAIN, N_SAMPLES = 200_000, 10_000
MOST_TOLD = 0.515  # the lesson's band for the accuracy of a classifier

Lesson = dict[str, Any]  # the namespace of the solved exercises
Score = Callable[[jax.Array, jax.Array], jax.Array]
# Takes a seed and the points to begin with; returns samples and the calls of the denoiser.
Sampler = Callable[[int, jax.Array], tuple[Any, int]]


class Run(NamedTuple):
    """One run of a sampler."""

    start: float  # seconds until the chain could run: tracing and compilation
    speed: float  # samples per second after the start
    calls: int  # of the denoiser, each for all points together


def trained(lesson: Lesson, points: jax.Array, steps: int) -> Any:
    """Parameters of the lesson's network, trained as in the lesson."""
    smallest, largest = lesson["SMALLEST"], lesson["LARGEST"]

    def draw(key, n=512):
        row_key, level_key, noise_key = jax.random.split(key, 3)
        x = points[jax.random.randint(row_key, (n,), 0, len(points))]
        u = (jnp.arange(n)[:, None] + jax.random.uniform(level_key, (n, 1))) / n
        sigma = 0.5 * smallest * (3.0 * largest / smallest) ** u
        noise = jax.random.normal(noise_key, (n, 2))
        return jnp.tile(x, (2, 1)), jnp.tile(sigma, (2, 1)), jnp.concatenate([noise, -noise])

    def loss(params, *batch):
        return lesson["dsm_loss"](
            partial(lesson["precondition"], partial(lesson["Net"]().apply, params)), *batch
        )

    start = lesson["Net"]().init(jax.random.key(5), jnp.zeros((1, 2)), jnp.zeros((1, 1)))
    schedule = optax.cosine_decay_schedule(1e-2, steps)
    with redirect_stdout(sys.stderr):
        return fit(
            loss,
            start,
            draw,
            key=jax.random.key(4),
            optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
            steps=steps,
            label="denoiser",
        ).params


class TorchNet(torch.nn.Module):
    """The lesson's network with the same weights."""

    def __init__(self, params: Any):
        super().__init__()
        layers = params["params"]
        self.layers = torch.nn.ModuleList()
        for name in sorted(layers, key=lambda name: int(name.removeprefix("Dense_"))):
            kernel, bias = (torch.tensor(np.array(layers[name][k])) for k in ("kernel", "bias"))
            layer = torch.nn.Linear(*kernel.shape)
            layer.weight.data, layer.bias.data = kernel.T.contiguous(), bias
            self.layers.append(layer)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        waves = t * 2.0 ** torch.arange(1.0, 5.0)
        features = torch.cat([t[None], torch.sin(waves), torch.cos(waves)])
        x = torch.cat([x, features.expand(len(x), -1)], dim=1)
        for layer in self.layers[:-1]:
            x = torch.nn.functional.silu(layer(x))
        return self.layers[-1](x)


# --- the course ------------------------------------------------------------------------------


def course_samplers(lesson: Lesson, params: Any) -> dict[str, list[Sampler]]:
    """The lesson's samplers, each with settings from few calls to many.

    The lesson's own setting is the last; of the ODE it is the tolerance of 1e-3.
    """
    smallest = lesson["SMALLEST"]
    levels = partial(diffusion.noise_levels, largest=lesson["LARGEST"], smallest=smallest)
    net = partial(lesson["Net"]().apply, params)

    def score(x, sigma):
        column = jnp.broadcast_to(sigma, (len(x), 1))
        return (lesson["precondition"](net, x, column) - x) / sigma**2

    finish = jax.jit(lambda x: 0.5 * (x + lesson["denoise"](x, smallest, score)))
    finish(jnp.zeros((N_SAMPLES, 2)))  # compiled once, for all

    def langevin(seed, x):
        def step(key, x, tau):
            return lesson["langevin_step"](key, x, lambda x: score(x, smallest), tau), None

        taus = jnp.full(200, 0.2 * (smallest**2 + two_moons.NOISE**2))
        # At the smallest noise from the start: from a Gaussian of size one, as in the lesson.
        x = jax.random.normal(jax.random.key(seed), x.shape)
        x, _ = diffusion.run_chain(step, jax.random.key(seed + 1), x, (taus,), label="Langevin")
        return finish(x), len(taus) + 1

    def hmc(n, repeats, seed, x):
        down = np.repeat(levels(n), repeats)
        x, _ = lesson["anneal"](score, jax.random.key(seed), x, down, "annealed HMC")
        return finish(x), 9 * len(down) + 1  # 4 leapfrog steps, with a middle each

    def sde(n, seed, x):
        x = lesson["reverse_sde"](score, jax.random.key(seed), x, levels(n), "reverse SDE")
        return finish(x), 2 * (n - 1) + 1  # predictor and corrector

    velocity = partial(lesson["flow_velocity"], score=score)

    def ode(tolerance, _seed, x):
        path = diffusion.solve_ode(velocity, x, levels(2), tolerance=tolerance)
        return finish(path.states[-1]), path.calls + 1

    return {
        "course: Langevin alone": [langevin],
        "course: annealed HMC": [partial(hmc, *n) for n in ((10, 1), (10, 2), (15, 2), (15, 3))],
        "course: reverse SDE, corrector": [partial(sde, n) for n in (11, 21, 41, 61)],
        "course: ODE": [partial(ode, tolerance) for tolerance in (1e-2, 1e-3, 1e-4)],
    }


# --- diffusers -------------------------------------------------------------------------------


def diffusers_samplers(lesson: Lesson, params: Any) -> dict[str, list[Sampler]]:
    """The schedulers of diffusers for this preconditioning, with the same levels and end."""
    net = TorchNet(params)
    smallest, spread = lesson["SMALLEST"], lesson["SPREAD"]
    centre = torch.tensor(np.array(lesson["CENTRE"]))
    config = {
        "sigma_min": smallest,
        "sigma_max": lesson["LARGEST"],
        "sigma_data": spread,
        "sigma_schedule": "exponential",
    }

    @torch.inference_mode()
    def run(make, n, seed, x):
        scheduler = make(**config)
        scheduler.set_timesteps(n)
        x = torch.tensor(np.array(x)) - centre
        generator = torch.Generator().manual_seed(seed)
        noisy = {"generator": generator}
        for t in scheduler.timesteps[:-1]:
            output = net(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(output, t, x, return_dict=False, **noisy)[0]
        # The last step would take all noise away; the lesson takes half of it.
        t = scheduler.timesteps[-1]
        output = net(scheduler.precondition_inputs(x, smallest), t)
        x = 0.5 * (x + scheduler.precondition_outputs(x, output, smallest))
        return (x + centre).numpy(), n

    sde = partial(EDMDPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")
    return {
        "diffusers: DPM-Solver++ 2M": [
            partial(run, EDMDPMSolverMultistepScheduler, n) for n in (8, 12, 16, 50)
        ],
        "diffusers: Euler (EDM)": [partial(run, EDMEulerScheduler, n) for n in (16, 32, 50, 121)],
        "diffusers: DPM-Solver++ 2M SDE": [partial(run, sde, n) for n in (16, 32, 64, 121)],
    }


def check_same(lesson: Lesson, params: Any) -> None:
    """Both networks must be the same, or the comparison means nothing."""
    x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    for t in (-0.9, 0.0, 0.2):
        ours = lesson["Net"]().apply(params, x, jnp.full((100, 1), t))
        with torch.inference_mode():
            theirs = TorchNet(params)(torch.tensor(x), torch.tensor(t)).numpy()
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)


# --- the report ------------------------------------------------------------------------------


def measured(
    sampler: Sampler, seed: int, begin: jax.Array, compiled: Callable[[], float]
) -> tuple[Run, np.ndarray]:
    """One run, and its samples (n, 2)."""
    before = time.perf_counter()
    x, calls = sampler(seed, begin)
    x = np.asarray(x)
    end = time.perf_counter()
    # What was compiled in an earlier run starts at once.
    ready = max(before, compiled())
    return Run(ready - before, len(x) / (end - ready), calls), x


Results = dict[tuple[str, int], list[tuple[Run, two_sample.Accuracy]]]


def numbers(rounds: list[tuple[Run, two_sample.Accuracy]], start: float) -> list[str]:
    """Cells of one setting. Of the speeds the fastest counts: other processes only slow it down."""
    speeds = [run.speed for run, _ in rounds]
    calls = np.median([run.calls for run, _ in rounds])
    per_call = max(run.speed * run.calls for run, _ in rounds) / 1e6
    told = np.array([accuracy for _, accuracy in rounds])
    return [
        f"{calls:.0f}",
        f"{max(speeds):,.0f} ({np.median(speeds):,.0f}, {min(speeds):,.0f})",
        f"{per_call:.2f}",
        f"{start:.1f}",
        *(f"{np.mean(column):.3f} (at most {column.max():.3f})" for column in told.T),
    ]


def good(rounds: list[tuple[Run, two_sample.Accuracy]]) -> bool:
    """Can neither classifier tell the samples, on average over the rounds?"""
    return bool(np.mean([accuracy for _, accuracy in rounds], axis=0).max() <= MOST_TOLD)


def report(results: Results, starts: dict[tuple[str, int], float]) -> str:
    """The conditions, the fewest good calls of each sampler, and all settings, in Markdown."""
    columns = [
        "calls of the denoiser",
        "samples per second, fastest round (median, slowest)",
        "million points per second through the denoiser, fastest",
        "start, s",
        "C2ST accuracy, 50-NN",
        "C2ST accuracy, network",
    ]
    head = f"| sampler | {' | '.join(columns)} |\n{'|---' * (1 + len(columns))}|"
    cells = {setting: numbers(rounds, starts[setting]) for setting, rounds in results.items()}
    chosen = []
    for name in dict.fromkeys(name for name, _ in results):
        settings = [setting for setting in results if setting[0] == name]
        fewest = next((setting for setting in settings if good(results[setting])), None)
        row = cells[fewest] if fewest else ["never good enough", *[""] * (len(columns) - 1)]
        chosen.append(f"| {name} | {' | '.join(row)} |")
    everything = [f"| {name} | {' | '.join(row)} |" for (name, _), row in cells.items()]
    lines = [conditions("jax", "flax", "scipy", "torch", "diffusers"), "", head, *chosen]
    return "\n".join([*lines, "", head, *everything])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each setting (3)")
    parser.add_argument("--steps", type=int, default=4_000, help="steps of the training (4000)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    options = parsed(parser)

    compiled = compile_clock()
    lesson = lessons.reference(lessons.load("09"))
    points = two_moons.simulate(jax.random.key(1), N_TRAIN)
    params = trained(lesson, points, options.steps)
    check_same(lesson, params)
    samplers = course_samplers(lesson, params) | diffusers_samplers(lesson, params)
    settings = {(name, k): s for name, some in samplers.items() for k, s in enumerate(some)}

    centre = lesson["CENTRE"]
    spread = jnp.linalg.cholesky(jnp.cov(points.T) + lesson["LARGEST"] ** 2 * jnp.eye(2))
    results: Results = {name: [] for name in settings}
    for number in range(options.rounds):
        seed = 100 * (number + 1)
        begin = centre + jax.random.normal(jax.random.key(seed), (N_SAMPLES, 2)) @ spread.T
        if not number:  # the first run of a setting says what its compilation takes
            starts = {n: measured(s, 0, begin, compiled)[0].start for n, s in settings.items()}
        done = {name: measured(s, seed, begin, compiled) for name, s in settings.items()}
        truth = two_moons.simulate(jax.random.key(seed + 50), N_SAMPLES)
        with redirect_stdout(sys.stderr):
            told = two_sample.accuracies(
                {name: x for name, (_, x) in done.items()}, truth, key=jax.random.key(seed)
            )
        for name, (run, _) in done.items():
            results[name].append((run, told[name]))
            print(f"round {number + 1}, {name}: {run}, {told[name]}", file=sys.stderr)
    print(report(results, starts))


if __name__ == "__main__":
    main()

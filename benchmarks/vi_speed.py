"""Variational inference of lesson 07 beside numpyro's SVI, and beside chains, on the CPU.

    python benchmarks/vi_speed.py > table.md

prints the tables of benchmarks/README.md in Markdown, its progress on stderr; for a quick try add
``--pairs 1 --steps 40 --iterations 20``. The problem is the lesson's galaxy: 33 latents, a learned
prior, a likelihood behind the telescope. First the lesson's guide is trained by the lesson's loop
and by numpyro's SVI, and numpyro's own flow guide on the same posterior, all with as many steps and
samples a step. Then the same posterior is sampled by HMC, as ``scripts/make_galaxy_posteriors.py``
does it, and by NUTS. All is compiled anew at each run, and runs alternate, so that a change in the
load of the machine meets all. Needs numpyro, BlackJAX and arviz-stats, which the course does not
install.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlcourse_utils import diagnostics, galaxy_posteriors, galaxy_prior, telescope
from dlcourse_utils.checks import engine
from dlcourse_utils.galaxy_prior import DIM

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

try:
    import blackjax
    import make_galaxy_posteriors as script
    import numpyro
    import numpyro.distributions as dist
    from arviz_stats.base import array_stats
    from common import conditions, parsed
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoIAFNormal
except ImportError as error:
    sys.exit(
        f"This benchmark compares with numpyro and BlackJAX, and {error.name} is missing: "
        "`pip install numpyro blackjax arviz-stats`, then run it again."
    )

WARM_UP = 30  # steps in which the lesson's learning rates rise
PARTS = 4  # of 1,000 samples of a guide
WIDTH = 232  # of numpyro's networks: with its three flows about as many weights as the lesson's
DOUBLINGS = 6  # of a trajectory of NUTS, at most

Lesson = dict[str, Any]  # the namespace of the solved exercises
Problem = tuple[Any, ...]  # the lesson's (y, variance, (mode, factor), observe, prior)
Draw = Callable[[int], tuple[jax.Array, jax.Array, jax.Array]]  # z, log p(z, y), log q(z) of a seed
Trainer = Callable[[Lesson, Problem, int, int], tuple[Any, Draw]]  # of (..., steps, seed)
Reference = galaxy_posteriors.References
Row = dict[str, float]  # a number for each label


class Guide(NamedTuple):
    """One training and 4,000 samples: seconds in all and of the samples once more, the effective
    number of them with their importance weights, and their `errors` without and with weights."""

    row: Row
    seconds: float
    drawing: float
    effective: float
    plain: np.ndarray
    weighted: np.ndarray


class Chains(NamedTuple):
    """One run of chains: seconds until they had warmed up, and of all; z (iterations, 8, 33)."""

    start: float
    total: float
    z: np.ndarray


# --- trainings ---------------------------------------------------------------------------------


def lesson_draw(lesson: Lesson, problem: Problem, params: Any, seed: int):
    """Samples of the lesson's guide."""
    keys = jax.random.split(jax.random.key(seed), PARTS)
    parts = [lesson["draw"](params, key, *problem) for key in keys]
    return tuple(map(jnp.concatenate, zip(*parts, strict=True)))


def course(lesson: Lesson, problem: Problem, _steps: int, seed: int) -> tuple[Any, Draw]:
    """The lesson's guide, bound, optimiser and loop, which has its number of steps from `main`."""
    params = lesson["fit_guide"](jax.random.key(seed), *problem).params
    return params, partial(lesson_draw, lesson, problem, params)


def improper(name: str) -> jax.Array:
    """33 numbers whose density is given by other sites."""
    real = dist.constraints.real_vector
    return numpyro.sample(name, dist.ImproperUniform(real, (), (DIM,)))


def run_svi(model, guide, optimizer, steps: int, seed: int) -> Any:
    """Parameters after numpyro's own loop, one compiled scan of all steps."""
    bound = Trace_ELBO(num_particles=32, vectorize_particles=True)  # as many as in the lesson
    svi = SVI(model, guide, numpyro.optim.optax_to_numpyro(optimizer), bound)
    return svi.run(jax.random.key(seed), steps, progress_bar=False).params


def numpyro_same(lesson: Lesson, problem: Problem, steps: int, seed: int) -> tuple[Any, Draw]:
    """The lesson's guide and optimiser; bound and loop of numpyro."""
    *data, start, observe, prior = problem
    begin = {"flow": prior.params["flow"], "shift": jnp.zeros(DIM), "scale": jnp.zeros((DIM, DIM))}
    noise = dist.Normal(jnp.zeros(DIM), 1.0).to_event(1)

    def model():
        z = improper("z")[None]
        numpyro.factor("log_joint", lesson["log_joint"](z, *data, observe, prior)[0])

    def guide():
        params = {name: numpyro.param(name, value) for name, value in begin.items()}
        eps = numpyro.sample("eps", noise, infer={"is_auxiliary": True})
        bijector = lesson["guide"](params, start)
        z, log_q = lesson["sample_and_log_prob"](eps[None], bijector)
        numpyro.sample("z", dist.Delta(z[0], log_q[0] - noise.log_prob(eps), event_dim=1))

    params = run_svi(model, guide, lesson["two_rates"](), steps, seed)
    return params, partial(lesson_draw, lesson, problem, params)


def numpyro_own(
    rate: float, lesson: Lesson, problem: Problem, steps: int, seed: int
) -> tuple[Any, Draw]:
    """numpyro's guide of inverse autoregressive flows, in the posterior whitened by Laplace.

    It samples e, with u = mode + factor e, of which the prior's flow makes z: so it too is close to
    the Laplace approximation, pushed through the prior's flow, when it is close to the identity.
    """
    y, variance, (mode, factor), observe, prior = problem
    log_volume = np.log(np.diagonal(factor)).sum()

    def model():
        u = mode + factor @ improper("e")
        numpyro.factor("prior", dist.Normal().log_prob(u).sum() + log_volume)
        mean = observe(prior.decode(prior.from_base(u[None])))[0]
        numpyro.sample("y", dist.Normal(mean, np.sqrt(variance)).to_event(2), obs=y)

    guide = AutoIAFNormal(model, hidden_dims=[WIDTH, WIDTH])
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, WARM_UP, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(20.0), optax.adam(schedule))
    params = run_svi(model, guide, optimizer, steps, seed)

    @jax.jit
    def draw(seed):
        density = guide.get_posterior(params)
        e, between = density.sample_with_intermediates(jax.random.key(seed), (1000 * PARTS,))
        z, log_det = galaxy_prior.flow(prior.params["flow"], mode + e @ factor.T)
        log_q = density.log_prob(e, between) - log_volume - log_det
        return z, lesson["log_joint"](z, y, variance, observe, prior), log_q

    return params, draw


TRAINERS: dict[str, Trainer] = {
    "course": course,
    "numpyro, the lesson's guide": numpyro_same,
    "numpyro, AutoIAFNormal, rate 3e-3": partial(numpyro_own, 3e-3),
    "numpyro, AutoIAFNormal, rate 1e-2": partial(numpyro_own, 1e-2),
}


# --- measurements ------------------------------------------------------------------------------


def longest_compilation() -> Callable[[], float]:
    """A function that says when the longest compilation since its last call ended, on
    `time.perf_counter`: that of a training's step, or of the scan of all its steps."""
    found: list[tuple[float, float]] = []

    def on_event(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            found.append((duration, time.perf_counter()))

    def ended():
        end = max(found, default=(0.0, 0.0))[1]
        found.clear()
        return end

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return ended


def errors(z: np.ndarray, reference: Reference, weights: np.ndarray | None = None) -> np.ndarray:
    """Of the mean and standard deviation of samples z (n, 33), against the stored chains: root mean
    squares over the latents, of the one in standard deviations, of the other relative."""
    mean = np.average(z, axis=0, weights=weights)
    width = np.sqrt(np.average((z - mean) ** 2, axis=0, weights=weights))
    shift = (mean - reference.z_mean[0]) / reference.z_std[0]
    return np.sqrt(np.mean([shift**2, (width / reference.z_std[0] - 1) ** 2], axis=1))


def trained(train, lesson: Lesson, steps: int, seed: int, compiled, reference) -> Guide:
    """Train a guide with empty caches, and look at its samples."""
    jax.clear_caches()
    compiled()
    clock = [time.perf_counter()]
    params, draw = jax.block_until_ready(train(steps, seed))
    clock.append(time.perf_counter())
    ready = compiled()
    for _ in range(2):
        z, log_p, log_q = map(np.asarray, draw(seed + 1))
        clock.append(time.perf_counter())
    weights, fraction = lesson["importance"](log_p, log_q)
    row = {
        "steps per second, after the start": steps / (clock[1] - ready),
        "start: tracing and compilation, s": ready - clock[0],
        f"training of {steps} steps, start included, s": clock[1] - clock[0],
        "numbers that are trained": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "ELBO, nats": np.mean(log_p - log_q),
        "widths over those of the chains, median latent": np.median(z.std(0) / reference.z_std[0]),
        "Pareto k": diagnostics.pareto_k(log_p - log_q),
    }
    return Guide(
        row,
        clock[2] - clock[0],
        clock[3] - clock[2],
        float(fraction) * len(z),
        errors(z, reference),
        errors(z, reference, np.asarray(weights)),
    )


@partial(jax.jit, static_argnames=("in_z", "doublings"))
def advance_nuts(key, state, step_size, data, shared, in_z, doublings):
    """NUTS in place of the script's `advance`, without its jitter of the step size."""
    kernel = blackjax.nuts.build_kernel()

    def one(key, state, step_size, *data):
        def log_density(e):
            return script.log_density(e, *data, *shared, in_z)

        state, info = kernel(key, state, log_density, step_size, jnp.ones(DIM), doublings)
        centre, factor = data[:2]
        return state, info.acceptance_rate, centre + factor @ state.position

    return jax.vmap(one)(jax.random.split(key, len(step_size)), state, step_size, *data)


def sampled(seen, group, shared, seed: int, advance: Callable) -> Chains:
    """The script's chains with empty caches: descents, warm-up, samples."""
    jax.clear_caches()
    clock = [time.perf_counter()]

    def run(*args, run=script.run, **options):  # of each stage; the last one samples
        begin = time.perf_counter()
        result = run(*args, **options)
        clock.extend([begin, time.perf_counter()])
        return result

    with patch.multiple(script, SEED=seed, run=run, advance=advance), redirect_stdout(sys.stderr):
        z = script.sample(seen, group, *shared)["z"][:, 0]
    return Chains(clock[-2] - clock[0], clock[-1] - clock[0], z.astype(float))


def as_good(chains: Chains, goal: np.ndarray, reference: Reference) -> float:
    """Seconds after which both errors of all chains together stay below the goal; infinite if that
    is not at the end of the run."""
    needed = np.inf
    for n in range(len(chains.z), 0, -1):
        if np.any(errors(chains.z[:n].reshape(-1, DIM), reference) > goal):
            break
        needed = n
    return chains.start + (chains.total - chains.start) * needed / len(chains.z)


# --- the report --------------------------------------------------------------------------------


def cost(start: float, total: float, found: np.ndarray, ess: np.ndarray | None = None) -> Row:
    """What samples cost, in seconds, and how good they are; ``ess`` of all latents, if known."""
    row = {"s until the first sample": start, "s in all": total}
    for which, of in {"worst": np.min, "median": np.median}.items():
        if ess is not None:
            row[f"effective samples, {which} latent"] = of(ess)
            row[f"these per s in all, {which} latent"] = of(ess) / total
            row[f"these per s after the first, {which} latent"] = of(ess) / (total - start)
    return row | dict(zip(("error of the means, sigma", "error of the widths"), found, strict=True))


def of_chains(chains: Chains, guide: Guide, reference: Reference) -> Row:
    """The cost of chains, and when they are as good as the guide of the same round."""
    x = chains.z.transpose(2, 1, 0)
    found = errors(chains.z.reshape(-1, DIM), reference)
    return cost(chains.start, chains.total, found, array_stats.ess(x)) | {
        "s until as good as VI": as_good(chains, guide.plain, reference),
        "s until as good as VI, weighted": as_good(chains, guide.weighted, reference),
        "R-hat, worst latent": np.max(array_stats.rhat(x)),
    }


def table(columns: dict[str, list[Row]]) -> str:
    """In Markdown: of each number the median of the rounds, and the lowest and highest."""
    rounds = len(next(iter(columns.values())))
    head = f"median (lowest to highest) of {rounds}"
    lines = [f"| {' | '.join([head, *columns])} |", "|---" * (1 + len(columns)) + "|"]
    for label in dict.fromkeys(label for rows in columns.values() for label in rows[0]):
        cells = []
        for rows in columns.values():
            values = [row[label] for row in rows if label in row]
            size = np.max(np.abs(values), initial=0.0)
            digits = 2 if "ELBO" in label else sum(size < limit for limit in (2, 10, 100))
            spread = [f"{f(values):,.{digits}f}" for f in (np.median, np.min, np.max) if values]
            cells.append("{} ({} to {})".format(*spread) if values else "")
        lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="rounds of all (3)")
    parser.add_argument("--steps", type=int, default=600, help="of a training, above 30 (600)")
    parser.add_argument("--iterations", type=int, default=720, help="of HMC; NUTS has half (720)")
    parser.set_defaults(threads=None)  # of torch, which has no part here
    options = parsed(parser)
    if options.steps <= WARM_UP:
        parser.error(f"--steps is {options.steps}: the learning rates rise for {WARM_UP}.")

    lesson, reference = engine.namespace("07"), galaxy_posteriors.load()
    lesson["GUIDE_STEPS"] = options.steps  # what `fit_guide` and `two_rates` look up
    lesson["OPTIMIZER"] = lesson["two_rates"]()
    prior = galaxy_prior.load()
    operator = telescope.operator(telescope.difference_kernel(telescope.moffat()))
    observe = jax.tree_util.Partial(telescope.apply, operator)
    seen = script.Observations(*(getattr(reference, f)[:1] for f in script.Observations._fields))
    group = next(group for group in script.GROUPS if 0 in group.rows)
    half = -(-options.iterations // 2)
    samplers = {
        "HMC": (script.advance, group._replace(iterations=options.iterations)),
        # What the script hands on as the number of leapfrogs is here that of the doublings.
        "NUTS": (advance_nuts, group._replace(iterations=half, leapfrogs=DOUBLINGS)),
    }
    compiled = longest_compilation()
    trainings: dict[str, list[Row]] = {name: [] for name in TRAINERS}
    samples: dict[str, list[Row]] = {name: [] for name in ("VI", "VI, weighted", *samplers)}
    for number in range(1, options.pairs + 1):
        jax.clear_caches()
        begin = time.perf_counter()
        found = galaxy_posteriors.laplace(seen.y, seen.variance, operator, prior)
        laplace = time.perf_counter() - begin
        print(f"round {number}, Laplace: {laplace:.1f} s", file=sys.stderr)
        start = found.mode[0], found.factor[0]
        problem = seen.y[0], seen.variance[0], start, observe, prior
        for name, trainer in TRAINERS.items():
            train = partial(trainer, lesson, problem)
            guide = trained(train, lesson, options.steps, 100 * number, compiled, reference)
            trainings[name].append(guide.row)
            print(f"round {number}, {name}: {guide}", file=sys.stderr)
            if name == "course":
                ours, total = guide, laplace + guide.seconds
        times = total - ours.drawing, total
        effective = np.array([ours.effective])
        samples["VI"].append(cost(*times, ours.plain))  # independent, of the guide
        samples["VI, weighted"].append(cost(*times, ours.weighted, effective))
        for name, (advance, how) in samplers.items():
            run = sampled(seen, how, (operator, prior), 100 * number, advance)
            samples[name].append(of_chains(run, ours, reference))
            print(f"round {number}, {name}: {samples[name][-1]}", file=sys.stderr)
    speed = "steps per second, after the start"
    for rows in trainings.values():
        for row, course_row in zip(rows, trainings["course"], strict=True):
            row["course's steps per second over these"] = course_row[speed] / row[speed]
    print(conditions("jax", "flax", "numpyro", "blackjax", "arviz-stats"), end="\n\n")
    print(table(trainings), table(samples), sep="\n\n")


if __name__ == "__main__":
    main()

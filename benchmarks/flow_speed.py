"""Training speed of lesson 03's affine RealNVP beside those of flowjax and zuko, on the CPU.

    python benchmarks/flow_speed.py > table.md

prints the tables of benchmarks/README.md in Markdown, its progress on stderr. All sides train the
same number of affine couplings, with the same conditioner in each, on the same two moons in memory,
with the same batch size, optimiser and schedule. Runs alternate, so that a change in the load of
the machine meets all. Needs flowjax and zuko, which the course does not install.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from contextlib import redirect_stdout
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlcourse_utils import lessons
from dlcourse_utils.datasets import two_moons
from dlcourse_utils.train import fit

try:
    import equinox as eqx
    import paramax
    import torch
    import zuko
    from common import Run, Trained, Trainer, compile_clock, conditions, measure, median, parsed
    from flowjax.distributions import StandardNormal
    from flowjax.flows import coupling_flow
    from flowjax.train.losses import MaximumLikelihoodLoss
    from flowjax.train.train_utils import step as flowjax_step
except ImportError as error:
    sys.exit(
        f"This benchmark compares with flowjax and zuko, and {error.name} is missing: "
        "`pip install flowjax zuko`, then run it again."
    )

N_TRAIN, N_TEST = 200_000, 50_000
LAYERS, WIDTH, DEPTH = 8, 128, 2  # the depth is that of the lesson's Net
# Half the rate of the lesson, whose nets are narrower: at 1e-2 some runs leave the finite numbers.
BATCH, LEARNING_RATE, CLIP = 512, 5e-3, 1.0

Lesson = dict[str, Any]  # the namespace of the solved exercises


def optimizer(steps: int) -> optax.GradientTransformation:
    """The lesson's, but for its `optax.flatten`."""
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(schedule))


def standardised(points: jax.Array, lesson: Lesson) -> np.ndarray:
    """The points as the couplings of the lesson see them."""
    return np.asarray((points - jnp.array(lesson["CENTRE"])) / jnp.array(lesson["SPREAD"]))


def log_volume(lesson: Lesson) -> float:
    """What to add to an NLL of standardised points, to have that of the points."""
    return float(np.log(lesson["SPREAD"]).sum())


def weights(params: Any) -> int:
    """How many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(params) if eqx.is_inexact_array(leaf))


def course_trainer(train: jax.Array, test: jax.Array, lesson: Lesson) -> Trainer:
    """The lesson's couplings, stack, loss and loop."""

    class Flow(nn.Module):
        def setup(self):
            self.nets = [lesson["Net"](2, WIDTH) for _ in range(LAYERS)]

        def __call__(self):
            return lesson["stack"](self.nets, lesson["coupling"])

        def start(self, x1):
            for net in self.nets:
                net(x1)

    flow = Flow()

    def loss(params, x):
        bijector = flow.apply(params).bijector
        return lesson["nll"](
            x, lambda x: (bijector.inverse(x), bijector.inverse_log_det_jacobian(x, 1))
        )

    compiled = compile_clock()

    def run(steps: int, seed: int) -> Trained:
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        with redirect_stdout(sys.stderr):
            trained = fit(
                loss,
                flow.init(init_key, jnp.zeros((1, 1)), method=Flow.start),
                (train,),
                key=batch_key,
                # Fewer arrays to update, as in the lesson; flowjax holds its layers in few arrays.
                optimizer=optax.flatten(optimizer(steps)),
                steps=steps,
                batch_size=BATCH,
                label="course",
            )
        print(f"course: {weights(trained.params):,} weights", file=sys.stderr)
        return Trained(compiled(), lambda: float(loss(trained.params, test)))

    return run


def flowjax_trainer(train: jax.Array, test: jax.Array, lesson: Lesson) -> Trainer:
    """flowjax's coupling flow and the step of its `fit_to_data`, on batches drawn as `fit` does."""
    data, held_out_data = (jnp.asarray(standardised(points, lesson)) for points in (train, test))
    compiled = compile_clock()

    @jax.jit
    def draw(key, index, data):
        rows = jax.random.randint(jax.random.fold_in(key, index), (BATCH,), 0, len(data))
        return data[rows]

    def run(steps: int, seed: int) -> Trained:
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        flow = coupling_flow(
            init_key,
            base_dist=StandardNormal((2,)),
            flow_layers=LAYERS,
            nn_width=WIDTH,
            nn_depth=DEPTH,
            nn_activation=jax.nn.silu,
        )
        params, static = eqx.partition(
            flow,
            eqx.is_inexact_array,
            is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable),
        )
        adam, loss = optimizer(steps), MaximumLikelihoodLoss()
        opt_state = adam.init(params)
        for index in range(steps):
            params, opt_state, _ = flowjax_step(
                params,
                static,
                draw(batch_key, np.int32(index), data),
                optimizer=adam,
                opt_state=opt_state,
                loss_fn=loss,
            )
        jax.block_until_ready(params)
        print(f"flowjax: {weights(params):,} weights", file=sys.stderr)
        return Trained(
            compiled(), lambda: float(loss(params, static, held_out_data)) + log_volume(lesson)
        )

    return run


def zuko_trainer(train: jax.Array, test: jax.Array, lesson: Lesson) -> Trainer:
    """zuko's RealNVP in a plain torch loop."""
    data, held_out_data = (torch.tensor(standardised(points, lesson)) for points in (train, test))

    def run(steps: int, seed: int) -> Trained:
        torch.manual_seed(seed)
        flow = zuko.flows.RealNVP(
            2, transforms=LAYERS, hidden_features=[WIDTH] * DEPTH, activation=torch.nn.SiLU
        ).train()
        params = list(flow.parameters())
        # Fused is the faster of the Adams that torch has on a CPU.
        adam = torch.optim.Adam(params, lr=LEARNING_RATE, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        ready = time.perf_counter()
        for _ in range(steps):
            rows = torch.randint(len(data), (BATCH,))
            adam.zero_grad()
            (-flow().log_prob(data[rows]).mean()).backward()
            torch.nn.utils.clip_grad_norm_(params, CLIP)
            adam.step()
            schedule.step()
        print(f"zuko: {sum(p.numel() for p in params):,} weights", file=sys.stderr)

        @torch.no_grad()
        def held_out() -> float:
            return -flow().log_prob(held_out_data).mean().item() + log_volume(lesson)

        return Trained(ready, held_out)

    return run


TRAINERS = {"course": course_trainer, "flowjax": flowjax_trainer, "zuko": zuko_trainer}
OTHERS = [name for name in TRAINERS if name != "course"]


def report(runs: dict[str, list[Run]], timed: dict[str, list[Run]], steps: int) -> str:
    """The conditions, the medians and the rounds, in Markdown.

    ``runs`` are those of as many steps; ``timed`` those of as many seconds as the course took.
    """
    course = runs["course"]

    def ratio(field: str, name: str) -> str:
        pairs = zip(course, runs[name], strict=True)
        return f"{np.median([getattr(a, field) / getattr(b, field) for a, b in pairs]):.2f}"

    def difference(others: list[Run]) -> str:
        pairs = zip(course, others, strict=True)
        return f"difference {np.median([a.nll - b.nll for a, b in pairs]):+.4f}"

    lines = [
        conditions("jax", "flax", "flowjax", "equinox", "torch", "zuko"),
        "",
        f"| median of {len(course)} | {' | '.join(runs)} "
        f"| {' | '.join(f'course to {name}, round by round' for name in OTHERS)} |",
        "|---" * (1 + len(runs) + len(OTHERS)) + "|",
    ]
    for label, field, style in (
        ("steps per second, after the start", "speed", ",.1f"),
        ("start: set-up and compilation, s", "start", ".2f"),
        (f"training of {steps:,} steps, start included, s", "total", ".1f"),
    ):
        values = [format(median(field, runs[name]), style) for name in runs]
        ratios = ["" if field == "start" else ratio(field, name) for name in OTHERS]
        lines.append(f"| {label} | {' | '.join(values + ratios)} |")
    for label, table in (
        (f"held-out NLL after {steps:,} steps, nats", runs),
        (f"held-out NLL in the seconds of the course's {steps:,} steps, nats", timed),
    ):
        values = [f"{median('nll', table[name]):.4f}" for name in runs]
        differences = [difference(table[name]) for name in OTHERS]
        lines.append(f"| {label} | {' | '.join(values + differences)} |")
    # The number of steps of a timed run is not kept: its speed and seconds give it back.
    values = [
        f"{np.median([run.speed * (run.total - run.start) for run in timed[name]]):,.0f}"
        f" in {median('total', timed[name]):.1f} s"
        for name in runs
    ]
    lines.append(f"| steps in these seconds | {' | '.join(values)} |{' |' * len(OTHERS)}")

    header = [f"{name}, steps/s" for name in runs]
    header += ["course to the faster other", *(f"{name}, NLL" for name in runs)]
    header += [f"{name}, NLL in the same seconds" for name in OTHERS]
    lines += ["", f"| round | {' | '.join(header)} |", "|---" * (1 + len(header)) + "|"]
    ratios = []
    for number, ours in enumerate(course):
        ratios.append(ours.speed / max(runs[name][number].speed for name in OTHERS))
        values = [f"{runs[name][number].speed:,.1f}" for name in runs]
        values += [f"{ratios[-1]:.2f}", *(f"{runs[name][number].nll:.4f}" for name in runs)]
        values += [f"{timed[name][number].nll:.4f}" for name in OTHERS]
        lines.append(f"| {number + 1} | {' | '.join(values)} |")
    lines += [
        "",
        f"Steps per second, course to the faster other: {np.median(ratios):.2f} (median), "
        f"{min(ratios):.2f} to {max(ratios):.2f}. Entropy of the two moons, the lowest NLL that "
        f"any density can have: {two_moons.entropy():.4f} nats.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--steps", type=int, default=1_500, help="steps of each run (1500)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    options = parsed(parser)

    lesson = lessons.reference(lessons.load("03"))
    train_key, test_key = jax.random.split(jax.random.key(1))
    train = two_moons.simulate(train_key, N_TRAIN)
    test = two_moons.simulate(test_key, N_TEST)
    jax.block_until_ready((train, test))
    trainers = {name: trainer(train, test, lesson) for name, trainer in TRAINERS.items()}
    # No side pays for what happens once in a process.
    for run in trainers.values():
        run(1, 0)

    runs: dict[str, list[Run]] = {name: [] for name in trainers}
    timed: dict[str, list[Run]] = {name: [] for name in OTHERS}
    for number in range(options.rounds):
        for name, run in trainers.items():
            runs[name].append(measure(run, options.steps, seed=number))
            print(f"round {number + 1}, {name}: {runs[name][-1]}", file=sys.stderr)
        # The others once more, with a schedule that ends when the course had ended.
        for name in OTHERS:
            last = runs[name][-1]
            steps = math.floor(last.speed * (runs["course"][-1].total - last.start))
            timed[name].append(measure(trainers[name], max(steps, 1), seed=number))
            print(f"round {number + 1}, {name}, as long: {timed[name][-1]}", file=sys.stderr)
    print(report(runs, {"course": runs["course"], **timed}, options.steps))


if __name__ == "__main__":
    main()

"""Training speed of lesson 01's mixture density network beside the one of sbi, on the CPU.

    python benchmarks/mdn_speed.py > table.md

prints the table of benchmarks/README.md in Markdown, its progress on stderr. Both sides train the
same network (three hidden layers of 64 silu units, the lesson's number of components) on the same
simulated clusters in memory, with the same batch size, optimiser and schedule. Runs alternate, so
that a change in the load of the machine meets both. Needs sbi, which the course does not install.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from contextlib import redirect_stdout
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from dlcourse_utils import lessons
from dlcourse_utils.datasets import clusters
from dlcourse_utils.train import fit

try:
    import torch
    from common import Run, Trained, Trainer, compile_clock, conditions, measure, median, parsed
    from sbi.neural_nets.estimators import MixtureDensityEstimator, MultivariateGaussianMDN
    from sbi.utils.sbiutils import Standardize
except ImportError as error:
    sys.exit(
        f"This benchmark compares with sbi, and {error.name} is missing: "
        "`pip install sbi`, then run it again."
    )

N_TRAIN, N_TEST = 400_000, 20_000
WIDTH, DEPTH = 64, 3
BATCH, LEARNING_RATE = 512, 1e-2


def course_trainer(
    train: clusters.Clusters, test: clusters.Clusters, lesson: dict[str, Any]
) -> Trainer:
    """The lesson's network and loop; ``lesson`` is the namespace of its solved exercises."""
    x_mean, x_std = train.features.mean(axis=0), train.features.std(axis=0)

    class MDN(nn.Module):
        """The lesson's MLP with the lesson's mixture on top."""

        @nn.compact
        def __call__(self, x):
            h = (x - x_mean) / x_std
            for _ in range(DEPTH):
                h = nn.silu(nn.Dense(WIDTH)(h))
            return lesson["mixture"](nn.Dense(3 * lesson["N_COMPONENTS"])(h))

    mdn = MDN()

    def loss(params, x, m):
        return lesson["nll"](mdn.apply(params, x), m)

    compiled = compile_clock()

    def run(steps: int, seed: int) -> Trained:
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        with redirect_stdout(sys.stderr):
            trained = fit(
                loss,
                mdn.init(init_key, train.features[:1]),
                (train.features, train.log_mass),
                key=batch_key,
                optimizer=optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps)),
                steps=steps,
                batch_size=BATCH,
                label="course",
            )
        return Trained(
            compiled(), lambda: float(loss(trained.params, test.features, test.log_mass))
        )

    return run


def sbi_trainer(
    train: clusters.Clusters, test: clusters.Clusters, lesson: dict[str, Any]
) -> Trainer:
    """sbi's mixture density estimator in a plain torch loop over its ``loss``."""
    features, log_mass, test_features, test_log_mass = (
        torch.tensor(np.asarray(array))
        for array in (
            train.features,
            train.log_mass[:, None],
            test.features,
            test.log_mass[:, None],
        )
    )
    shift_and_scale = torch.tensor([[lesson["MASS_CENTRE"]], [lesson["MASS_SCALE"]]])
    # The moments of the other side, from the same array: torch.std divides by n - 1.
    x_mean, x_std = (
        torch.tensor(np.asarray(moment(axis=0)))
        for moment in (train.features.mean, train.features.std)
    )

    def estimator() -> MixtureDensityEstimator:
        # build_mdn of sbi makes the same objects with two relu layers and no way to change them.
        widths = [features.shape[1]] + [WIDTH] * DEPTH
        layers: list[torch.nn.Module] = []
        for n_in, n_out in itertools.pairwise(widths):
            layers += [torch.nn.Linear(n_in, n_out), torch.nn.SiLU()]
        net = MultivariateGaussianMDN(
            features=1,
            context_features=features.shape[1],
            hidden_features=WIDTH,
            num_components=lesson["N_COMPONENTS"],
            hidden_net=torch.nn.Sequential(*layers),
            custom_initialization=True,
        )
        return MixtureDensityEstimator(
            net,
            input_shape=log_mass[0].shape,
            condition_shape=features[0].shape,
            embedding_net=Standardize(x_mean, x_std),
            transform_input=shift_and_scale,
        )

    def run(steps: int, seed: int) -> Trained:
        torch.manual_seed(seed)
        mdn = estimator()
        # Fused is the faster of the Adams that torch has on a CPU.
        optimizer = torch.optim.Adam(mdn.parameters(), lr=LEARNING_RATE, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        ready = time.perf_counter()
        for _ in range(steps):
            rows = torch.randint(len(features), (BATCH,))
            optimizer.zero_grad()
            mdn.loss(log_mass[rows], features[rows]).mean().backward()
            optimizer.step()
            schedule.step()

        @torch.no_grad()
        def held_out() -> float:
            return mdn.loss(test_log_mass, test_features).mean().item()

        return Trained(ready, held_out)

    return run


def report(course: list[Run], sbi: list[Run], steps: int) -> str:
    """The conditions, the medians and the pairs, in Markdown."""
    lines = [
        conditions("jax", "flax", "torch", "sbi"),
        "",
        f"| median of {len(course)} | course | sbi | ratio pair by pair, median |",
        "|---|---|---|---|",
    ]

    pairs = list(zip(course, sbi, strict=True))
    for label, field, style in (
        ("steps per second, after the start", "speed", ",.0f"),
        ("start: set-up and compilation, s", "start", ".2f"),
        (f"training of {steps:,} steps, start included, s", "total", ".1f"),
    ):
        ratio = np.median([getattr(ours, field) / getattr(theirs, field) for ours, theirs in pairs])
        lines.append(
            f"| {label} | {median(field, course):{style}} | {median(field, sbi):{style}} "
            f"| {'' if field == 'start' else format(ratio, '.2f')} |"
        )
    difference = np.median([ours.nll - theirs.nll for ours, theirs in pairs])
    lines += [
        f"| held-out NLL after {steps:,} steps, nats | {median('nll', course):.4f} "
        f"| {median('nll', sbi):.4f} | difference {difference:+.4f} |",
        "",
        "| pair | course, steps/s | sbi, steps/s | ratio | course, NLL | sbi, NLL | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {number} | {ours.speed:,.0f} | {theirs.speed:,.0f} | {ours.speed / theirs.speed:.2f} "
        f"| {ours.nll:.4f} | {theirs.nll:.4f} | {ours.nll - theirs.nll:+.4f} |"
        for number, (ours, theirs) in enumerate(pairs, 1)
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--steps", type=int, default=5_000, help="steps of each run (5000)")
    parser.add_argument("--threads", type=int, help="threads of torch (its own default)")
    options = parsed(parser)

    lesson = lessons.reference(lessons.load("01"))
    train_key, test_key, _ = jax.random.split(jax.random.key(1), 3)  # the lesson's own clusters
    train = clusters.simulate(train_key, N_TRAIN)
    test = clusters.simulate(test_key, N_TEST)
    jax.block_until_ready((train, test))
    course_run = course_trainer(train, test, lesson)
    sbi_run = sbi_trainer(train, test, lesson)
    # Neither side pays for what happens once in a process.
    course_run(1, 0)
    sbi_run(1, 0)

    course, sbi = [], []
    for pair in range(options.pairs):
        for name, run, runs in (("course", course_run, course), ("sbi", sbi_run, sbi)):
            runs.append(measure(run, options.steps, seed=pair))
            print(f"pair {pair + 1}, {name}: {runs[-1]}", file=sys.stderr)
    print(report(course, sbi, options.steps))


if __name__ == "__main__":
    main()

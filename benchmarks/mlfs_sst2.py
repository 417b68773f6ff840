"""Are nested subnets as good as separately distilled ones, and cheaper? MiniLM-L6 on SST-2, against what is simpler.

    python benchmarks/mlfs_sst2.py --seeds 0 1 2   # an hour of one free CPU thread; goes on where it was stopped
    python benchmarks/mlfs_sst2.py --quick         # a minute: 128 texts and a few steps, checks that it runs

One palette of eight standard shapes is nested in a fine-tuned teacher and trained at once. Two of them are looked
at closely, half and a quarter of the teacher's body (the parameters without embeddings and head), each against

    untrained       the same slice before training
    alone           the same slice trained by itself for the same number of its own steps, same loss
    first layers    a body of the same size made of the teacher's first layers, trained alone for as many steps

and, in a palette trained for fewer steps (--short-steps), against that palette

    gamma 0         without gradient scaling
    unordered       without the importance permutation: slices keep arbitrary channels

The training time of both palettes is set against eight separate distillations, tried at growing lengths until their
mean accuracy, and until their mean KL divergence, is that of the nested eight.

Accuracy is on the 872 sentences of dev: one standard error is one point. KL(teacher ‖ member) in nats is beside it
and is far less noisy. Training reads the texts of at least 12 tokens: most of SST-2's training texts are short
phrases, and dev is whole sentences. Time is CPU time of the training process, on one thread. The teacher (1800
steps, 0.899) serves all seeds and is asked once about each text; what asking it costs is measured apart and counted
on both sides. A seed changes the low-rank pairs, the order of texts and the turns of the subnets. Every run is kept
under benchmarks/.cache/ by its settings, so a stopped benchmark goes on and a changed setting runs again; delete the
directory after changing the algorithm.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from typing import Any

import peft
import torch
import transformers
from sst2_family import FIRST_LAYERS, PALETTE, TARGETS, Bench, label, report
from sst2_teacher import QUICK_STEPS, STEPS, finetuned_teacher, load_sst2

from ireko_trainer.mlfs import Shape, count_parameters

ABLATIONS: dict[str, dict[str, Any]] = {"gamma 0": {"gamma": 0.0}, "unordered": {"ordered": False}}


def spread(values: list[dict[str, float]]) -> dict[str, float]:
    """Mean over seeds, and the standard deviations where there are several."""

    def deviation(name: str) -> float:
        return round(statistics.stdev(value[name] for value in values), 4) if len(values) > 1 else 0.0

    return {
        "accuracy": round(statistics.mean(value["accuracy"] for value in values), 4),
        "accuracySd": deviation("accuracy"),
        "kl": round(statistics.mean(value["kl"] for value in values), 4),
        "klSd": deviation("kl"),
        "seeds": len(values),
    }


def look_closely(
    bench: Bench, *, palette: dict[str, Any], seeds: list[int], ablation_seeds: list[int]
) -> dict[str, Any]:
    """Each target in the family against everything that trains as long."""
    rows: dict[str, Any] = {}
    for name, wanted in TARGETS.items():
        member = [bench.train(**palette, seed=seed)["members"][label(wanted)] for seed in seeds]
        own = {seed: bench.run(**palette, seed=seed).own_steps(wanted, bench.full) for seed in seeds}

        def alone(one: Shape, seeds: list[int], own: dict[int, int] = own) -> dict[str, float]:
            outcomes = [bench.train(shapes=(one,), steps=own[seed], seed=seed) for seed in seeds]
            return spread([outcome["members"][label(one)] for outcome in outcomes])

        rows[name] = {
            "member": spread(member),
            "ofTeacher": round(spread(member)["accuracy"] / bench.teacher["accuracy"], 4),
            "ownSteps": round(statistics.mean(own.values())),
            "alone": alone(wanted, seeds),
            "first layers": alone(FIRST_LAYERS[name], ablation_seeds),
            "untrained": bench.untrained(wanted, ordered=True),
            "untrained, unordered": bench.untrained(wanted, ordered=False),
        }
        report(f"{name}: {rows[name]}")
    return rows


def ablate(
    bench: Bench, *, palette: dict[str, Any], seeds: list[int], ablation_seeds: list[int]
) -> dict[str, Any]:
    """What the parts of the method are worth to the targets; `member, same seeds` is what to compare with."""
    variants: dict[str, tuple[dict[str, Any], list[int]]] = {
        "member": ({}, seeds),
        "member, same seeds": ({}, ablation_seeds),
        **{name: (changed, ablation_seeds) for name, changed in ABLATIONS.items()},
    }
    rows: dict[str, Any] = {}
    for variant, (changed, its_seeds) in variants.items():
        runs = [bench.train(**palette, **changed, seed=seed)["members"] for seed in its_seeds]
        rows[variant] = {
            name: spread([members[label(wanted)] for members in runs]) for name, wanted in TARGETS.items()
        }
    return rows


def compare_cost(
    bench: Bench, *, palette: dict[str, Any], lengths: list[int], seeds: list[int]
) -> dict[str, Any]:
    """Training time of the nested eight against eight separate distillations that are as good."""

    def mean(runs: list[dict[str, Any]]) -> dict[str, float]:
        members = [member for run in runs for member in run["members"].values()]
        return {
            "accuracy": round(statistics.mean(member["accuracy"] for member in members), 4),
            "kl": round(statistics.mean(member["kl"] for member in members), 4),
            "seconds": round(sum(run["seconds"] for run in runs), 1),
        }

    seed = seeds[0]
    nested = mean([bench.train(**palette, seed=seed)])
    tried = {}
    for length in lengths:
        tried[length] = mean([bench.train(shapes=(one,), steps=length, seed=seed) for one in PALETTE])
        report(f"eight alone, {length} steps each: {tried[length]}")
        if tried[length]["kl"] <= nested["kl"] and tried[length]["accuracy"] >= nested["accuracy"]:
            break
    equal_by = {
        "accuracy": [length for length in tried if tried[length]["accuracy"] >= nested["accuracy"]],
        "kl": [length for length in tried if tried[length]["kl"] <= nested["kl"]],
    }
    ratios = {
        name: _time_ratios(bench, nested=nested, steps=palette["steps"], tried=tried, equal=equal)
        for name, equal in equal_by.items()
    }
    return {"nested": nested, "alone": tried, "timeRatio": ratios}


def _time_ratios(
    bench: Bench,
    *,
    nested: dict[str, float],
    steps: int,
    tried: dict[int, dict[str, float]],
    equal: list[int],
) -> dict[str, Any]:
    """The nested eight's time over that of eight alone, at the first length that is as good as they are.

    `asked`: the teacher is asked in every step, by all runs. `kept`: its answers are kept, and shared by all runs.
    """
    length = equal[0] if equal else max(tried)
    # Even the longest did not get as far as the nested eight, or the shortest got farther already.
    bound = "an upper bound" if not equal else "a lower bound" if length == min(tried) else "measured"
    ask, epoch = bench.teacher_seconds(), bench.steps_per_epoch
    alone = tried[length]["seconds"]
    return {
        "aloneSteps": length,
        "is": bound,
        "asked": round((nested["seconds"] + steps * ask) / (alone + 8 * length * ask), 3),
        "kept": round((nested["seconds"] + min(steps, epoch) * ask) / (alone + min(length, epoch) * ask), 3),
    }


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What the user wants, cut down to what takes a minute with --quick."""
    parser.add_argument("--quick", action="store_true", help="128 texts and a few steps; proves nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of training (default 0)")
    parser.add_argument(
        "--ablation-seeds",
        type=int,
        nargs="+",
        default=[0],
        help="seeds of first layers, gamma 0 and unordered (default 0); they must be among --seeds",
    )
    parser.add_argument("--steps", type=int, default=1200, help="steps of the palette (default 1200)")
    parser.add_argument(
        "--short-steps", type=int, default=600, help="steps of the shorter palette (default 600)"
    )
    parser.add_argument("--subnets", type=int, default=1, help="subnets per step (default 1)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak (default 2e-3)")
    parser.add_argument(
        "--alone-steps",
        type=int,
        nargs="+",
        default=[100, 150],
        help="lengths of a separate distillation, tried in turn until the eight are as good as the nested eight",
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.short_steps, arguments.alone_steps = 16, 8, [2]
    if not set(arguments.ablation_seeds) <= set(arguments.seeds):
        parser.error(f"--ablation-seeds {arguments.ablation_seeds} are not among --seeds {arguments.seeds}")
    return arguments


def main() -> None:
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    torch.set_num_threads(arguments.threads)
    teacher_steps = QUICK_STEPS if arguments.quick else STEPS
    data = load_sst2(limit=128 if arguments.quick else None)
    bench = Bench(
        data=data,
        teacher=finetuned_teacher(data=data, steps=teacher_steps),
        common={"learning_rate": arguments.learning_rate, "shortest": 12, "teacher_steps": teacher_steps},
    )
    report(f"teacher: {bench.teacher}")
    palette = {"shapes": PALETTE, "steps": arguments.steps, "subnets_per_step": arguments.subnets}
    short = palette | {"steps": arguments.short_steps}
    whole = count_parameters(bench.plain_teacher, bench.full)
    sizes = {name: count_parameters(bench.plain_teacher, one) for name, one in TARGETS.items()}
    results: dict[str, Any] = {
        "teacher": bench.teacher,
        "targets": look_closely(
            bench, palette=palette, seeds=arguments.seeds, ablation_seeds=arguments.ablation_seeds
        ),
        "short": ablate(bench, palette=short, seeds=arguments.seeds, ablation_seeds=arguments.ablation_seeds),
        "cost": {
            trained["steps"]: compare_cost(
                bench, palette=trained, lengths=arguments.alone_steps, seeds=arguments.seeds
            )
            for trained in (short, palette)
        },
        "share": {
            name: {"body": round(size.body / whole.body, 3), "all": round(size.total / whole.total, 3)}
            for name, size in sizes.items()
        },
        "settings": {
            "steps": arguments.steps,
            "shortSteps": arguments.short_steps,
            "subnetsPerStep": arguments.subnets,
            "learningRate": arguments.learning_rate,
            "teacherSecondsPerStep": round(bench.teacher_seconds(), 4),
        },
    }
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    versions["python"] = platform.python_version()
    print(
        json.dumps(
            {"benchmark": "mlfs_sst2", "results": results, "versions": versions, "seeds": arguments.seeds}
        )
    )


if __name__ == "__main__":
    main()

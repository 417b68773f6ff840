"""Which matrices of a decoder should get the bits? Orders as published against measuring, at equal bits, on decoder12.

    python benchmarks/bits_decoder.py                  # half an hour on a free core; goes on where it was stopped
    python benchmarks/bits_decoder.py --methods RTN    # a third of it
    python benchmarks/bits_decoder.py --main --windows 585    # what the goals compare, on 18 times the texts
    python benchmarks/bits_decoder.py --quick          # one average, few tokens: checks that it runs

Perplexity by the protocol of `decoder12.py`; average bits are code bits (float16 scales of groups of 64 add 0.25);
embeddings, head and norms stay as they are. Orders of whole blocks use the two whole widths around the average (2
and 4 for 3.0), as published. Measured allocations choose per matrix among 2, 3, 4, 5, 6 and 8 bits:

* *sensitivity*: divergence with one matrix quantized, on 2,048 calibration tokens, then an exact knapsack;
* *relinearized*: the same costs measured again around the result, and bits exchanged while the divergence falls;
* *evolved*: EvoPress's search from there;
* *interactions*: CoopQ's quadratic model of random orders, over blocks and the two widths;
* *sensitivity on the test*: no method but a bound, for RTN: what the first would choose if it knew the test's texts.

Under GPTQ the measures use a database of every matrix at every width, and every allocation is then quantized anew from
block to block. The last line of standard output is one JSON object. Results are kept in benchmarks/.cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from decoder12 import (
    WINDOWS,
    Cache,
    Texts,
    batches,
    load_decoder,
    load_texts,
    print_result,
    print_table,
    quality,
    report,
)
from transformers import PreTrainedModel

from ireko_trainer.quant import QuantizedWeights, dequantize, importance_tiers, lim, zd
from ireko_trainer.quant.blockwise import ModelInMemory, gptq_blocks, gptq_database
from ireko_trainer.quant.evolve import SearchSettings, SearchState, evolve
from ireko_trainer.quant.interactions import choose_lowered, measure_interactions
from ireko_trainer.quant.knapsack import Limit, knapsack
from ireko_trainer.quant.layout import put_weight
from ireko_trainer.quant.probe import Probe
from ireko_trainer.quant.sensitivity import relinearize, sensitivities
from ireko_trainer.quant.units import Unit, find_units, module_bits

Method = Literal["RTN", "GPTQ"]

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUP_SIZE = 64
RANDOM_SEEDS = (0, 1, 2, 3, 4)
LEVELS = {2.5: (2, 3), 3.0: (2, 4), 3.5: (3, 4)}
MEASURED_SEED = 1
"""Windows for measuring divergences are not those that GPTQ is calibrated on."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    averages: tuple[float, ...] = (2.5, 3.0, 3.5)
    seeds: tuple[int, ...] = RANDOM_SEEDS
    gptq_windows: int = 64
    measure_windows: int = 8
    test_windows: int = 32
    rounds: int = 8
    generations: int = 30
    offspring: int = 24
    orders: int = 30


QUICK = Size(
    averages=(2.5,),
    seeds=(0,),
    gptq_windows=4,
    measure_windows=1,
    test_windows=2,
    rounds=1,
    generations=1,
    offspring=3,
    orders=1,
)


@dataclass
class Bench:
    """The model, its texts, and what is measured once for all allocations of one method."""

    method: Method
    size: Size
    cache: Cache
    texts: Texts
    main_only: bool = False
    """Leave out the orders that no goal is about."""
    model: PreTrainedModel = field(default_factory=load_decoder)

    def __post_init__(self) -> None:
        self.key = {"method": self.method, "calibration": self.size.gptq_windows}
        self.calibration = batches(self.texts.calibration(self.size.gptq_windows))
        self.probe_batches = batches(self.texts.calibration(self.size.measure_windows, seed=MEASURED_SEED))
        self.weights = QuantizedWeights(model=self.model, group_size=GROUP_SIZE)
        self.blocks = {name: [m.module for m in ms] for name, ms in self.weights.layout.blocks.items()}
        self.modules = [name for names in self.blocks.values() for name in names]

    def units(self, *, tie: Literal["matrix", "block"], widths: Sequence[int] = WIDTHS) -> list[Unit]:
        """What gets bits as one, inside the blocks."""
        found = find_units(
            model=self.model,
            layout=self.weights.layout,
            batch=self.probe_batches[0],
            widths=widths,
            tie=tie,
        )
        return [unit for unit in found if unit.block is not None]

    @cached_property
    def matrices(self) -> list[Unit]:
        """Every matrix of the blocks as a unit of its own."""
        return self.units(tie="matrix")

    @cached_property
    def probe(self) -> Probe:
        """Measures candidates; under GPTQ from the database."""
        if self.method == "GPTQ":
            start = time.perf_counter()
            for name, tensor in gptq_database(
                source=ModelInMemory(self.model),
                batches=self.calibration,
                widths=dict.fromkeys(self.modules, WIDTHS),
                group_size=GROUP_SIZE,
            ):
                self.weights.add(name, tensor)
            report(f"GPTQ of every matrix at {WIDTHS}: {time.perf_counter() - start:.1f} s")
        return self.probe_on(self.probe_batches)

    def probe_on(self, windows: Sequence[Mapping[str, torch.Tensor]]) -> Probe:
        """Measures candidates on other windows."""
        return Probe(model=self.model, weights=self.weights, batches=windows, kind="distribution")

    @cached_property
    def costs(self) -> list[dict[int, float]]:
        """Width -> divergence of every matrix alone."""
        key = {**self.key, "what": "sensitivities", "windows": self.size.measure_windows, "widths": WIDTHS}
        return self._costs(key, lambda: self.probe)

    @cached_property
    def costs_of_the_test(self) -> list[dict[int, float]]:
        """The same on windows of the texts that the result is measured on."""
        each = self.size.test_windows // 2
        step = len(self.texts.stories) // each
        windows = torch.stack([self.texts.stories[::step][:each], self.texts.articles[::step][:each]], dim=1)
        windows = windows.flatten(0, 1)
        key = {**self.key, "what": "sensitivities of the test", "windows": len(windows), "widths": WIDTHS}
        key |= {"of": len(self.texts.stories)}
        return self._costs(key, lambda: self.probe_on(batches(windows)))

    def _costs(self, key: Mapping[str, Any], probe: Callable[[], Probe]) -> list[dict[int, float]]:
        found = self.cache.get(
            key,
            lambda: [
                {str(width): cost for width, cost in table.items()}
                for table in sensitivities(probe=probe(), weights=self.weights, units=self.matrices)
            ],
        )
        return [{int(width): cost for width, cost in table.items()} for table in found]

    def measure(self, bits: Mapping[str, int]) -> float:
        """Perplexity with these bits per module; measured once."""
        key = {**self.key, "what": "perplexity", "bits": [bits[name] for name in self.modules]}
        return float(self.cache.get({**key, **self._measured_on}, lambda: self._measure(bits)))

    def _measure(self, bits: Mapping[str, int]) -> float:
        if self.method == "RTN":
            found = {name: self._rounded.at(name, bits[name]) for name in self.modules}
        else:
            found = dict(
                gptq_blocks(
                    source=ModelInMemory(self.model),
                    batches=self.calibration,
                    bits=bits,
                    group_size=GROUP_SIZE,
                )
            )
        linears = {name: self.model.get_submodule(name) for name in self.modules}
        before = {name: module.weight.data for name, module in linears.items()}
        for name, module in linears.items():
            put_weight(module, dequantize(found[name]))
        result = quality(self.model, self.texts)
        for name, module in linears.items():
            module.weight.data = before[name]
        return result

    @cached_property
    def _rounded(self) -> QuantizedWeights:
        return QuantizedWeights(model=self.model, group_size=GROUP_SIZE)

    def reference(self) -> float:
        """Perplexity of the unquantized model."""
        key = {"what": "reference", **self._measured_on}
        return float(self.cache.get(key, lambda: quality(self.model, self.texts)))

    @property
    def _measured_on(self) -> dict[str, int]:
        """Part of the key of a result: nothing for the protocol's own texts."""
        windows = len(self.texts.stories)
        return {} if windows == WINDOWS else {"windows": windows}


# --- orders of blocks -----------------------------------------------------------------------------


def uniform_rows(bench: Bench, widths: Sequence[int]) -> list[dict[str, Any]]:
    return [row(bench, float(width), "uniform", [dict.fromkeys(bench.modules, width)]) for width in widths]


def order_rows(bench: Bench, average: float) -> list[dict[str, Any]]:
    """k blocks at the higher width in the order of each score, the others at the lower one."""
    blocks = tuple(bench.blocks)
    low, high = LEVELS[average]
    count = round(len(blocks) * (average - low) / (high - low))

    def raised(order: Sequence[str]) -> dict[str, int]:
        wide = set(order[:count])
        return {m: high if block in wide else low for block, names in bench.blocks.items() for m in names}

    def by(importance: Any, scores: Mapping[str, float] | None = None, seed: int = 0) -> dict[str, int]:
        tiers = importance_tiers(importance=importance, blocks=blocks, scores=scores, seed=seed)
        return raised([name for tier in tiers for name in tier])

    scores = bench.cache.get(
        {"what": "LIM", "windows": bench.size.measure_windows},
        lambda: lim(
            model=bench.model,
            batches=[b | {"attention_mask": torch.ones_like(b["input_ids"])} for b in bench.probe_batches],
        ),
    )
    seeds = bench.size.seeds
    found = [row(bench, average, "LIM", [by("LIM", scores)])]
    if bench.main_only:
        return found
    return [
        *found,
        row(bench, average, "ZD", [by("ZD", zd(model=bench.model))]),
        row(bench, average, "reverse LIM", [by("Reverse", scores)]),
        row(bench, average, "random", [by("Random", seed=seed) for seed in seeds]),
        row(bench, average, "first block, rest random", [by("FirstBlock", seed=seed) for seed in seeds]),
    ]


def interaction_row(bench: Bench, average: float) -> dict[str, Any]:
    low, high = LEVELS[average]
    units = bench.units(tie="block", widths=(low, high))

    def divergence(lowered: Sequence[bool]) -> float:
        return bench.probe.value(module_bits(units, [low if one else high for one in lowered]))

    def compute() -> list[bool]:
        model = measure_interactions(units=len(units), divergence=divergence, orders=bench.size.orders)
        savings = [(high - low) * unit.weights for unit in units]
        least = sum(high * unit.weights for unit in units) - most_code_bits(units, average)
        return choose_lowered(model=model, savings=savings, least_saved=least)

    lowered = bench.cache.get(
        {**bench.key, "what": "interactions", "average": average, "orders": bench.size.orders}, compute
    )
    bits = module_bits(units, [low if one else high for one in lowered])
    return row(bench, average, "interactions (blocks)", [bits])


# --- allocations by measure -----------------------------------------------------------------------


def most_code_bits(units: Sequence[Unit], average: float) -> int:
    return int(average * sum(unit.weights for unit in units))


def code_bits(units: Sequence[Unit], average: float) -> Limit:
    return Limit(
        amounts=[{width: width * unit.weights for width in unit.widths} for unit in units],
        most=most_code_bits(units, average),
    )


def measured_rows(bench: Bench, average: float) -> list[dict[str, Any]]:
    units, limit = bench.matrices, code_bits(bench.matrices, average)
    first = knapsack(costs=bench.costs, limits=[limit])
    key = {**bench.key, "average": average, "windows": bench.size.measure_windows}

    def again() -> list[int]:
        bits, _ = relinearize(
            probe=bench.probe,
            units=units,
            bits=first,
            limits=[limit],
            rounds=bench.size.rounds,
            on_round=lambda number, value: report(f"round {number}: {value:.5f}"),
        )
        return bits

    second = bench.cache.get({**key, "what": "relinearized", "rounds": bench.size.rounds}, again)
    third = bench.cache.get(
        {**key, "what": "evolved", "size": [bench.size.generations, bench.size.offspring]},
        lambda: evolved(bench, units, limit, second),
    )
    named = {"sensitivity": first, "relinearized": second, "evolved": third}
    if bench.method == "RTN" and not bench.main_only:
        named["sensitivity on the test"] = knapsack(costs=bench.costs_of_the_test, limits=[limit])
    return [row(bench, average, name, [module_bits(units, bits)]) for name, bits in named.items()]


def evolved(bench: Bench, units: Sequence[Unit], limit: Limit, start: Sequence[int]) -> list[int]:
    few, many = bench.probe_on(bench.probe_batches[:1]), bench.probe

    def show(state: SearchState) -> None:
        report(f"generation {state.generation}: {state.value:.5f}")

    found = evolve(
        units=units,
        limits=[limit],
        start=start,
        measures=[
            lambda bits: few.value(module_bits(units, bits)),
            lambda bits: many.value(module_bits(units, bits)),
        ],
        settings=SearchSettings(
            generations=bench.size.generations, offspring=bench.size.offspring, survivors=(4,)
        ),
        on_generation=show,
    )
    return found.bits


# --- the table ------------------------------------------------------------------------------------


def row(bench: Bench, average: float, name: str, choices: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """Mean over the choices behind a name, and their range where there are several."""
    values = [bench.measure(bits) for bits in choices]
    mean = statistics.fmean(values)
    found: dict[str, Any] = {
        "method": bench.method,
        "average bits": average,
        "allocation": name,
        "perplexity": round(mean, 4),
        "excess": round(mean - bench.reference(), 4),
    }
    if len(values) > 1:
        found["range"] = [round(min(values), 3), round(max(values), 3)]
    return found


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was asked for, and what came out: shares of another row's excess that are removed."""
    excess = {(r["method"], r["average bits"], r["allocation"]): r["excess"] for r in rows}
    best = ("sensitivity", "relinearized", "evolved", "interactions (blocks)")
    found = []

    def judge(
        method: str, average: float, over: tuple[float, str], ours: Sequence[str], least: float
    ) -> None:
        base = excess.get((method, *over))
        reached = {name: excess[method, average, name] for name in ours if (method, average, name) in excess}
        if base and reached:
            name = min(reached, key=lambda key: reached[key])
            share = round(1 - reached[name] / base, 3)
            found.append(
                {
                    "method": method,
                    "average bits": average,
                    "of": over[1],
                    "best": name,
                    "removed": share,
                    "goal": least,
                }
            )

    for method in ("RTN", "GPTQ"):
        for average in (2.5, 3.5):
            judge(method, average, (average, "LIM"), best, 0.4)
        judge(method, 3.0, (3.0, "uniform"), best, 0.3)
        for average in (2.5, 3.0, 3.5):
            judge(method, average, (average, "random"), ("LIM",), 0.3)
    return found


def run(bench: Bench) -> list[dict[str, Any]]:
    rows = uniform_rows(bench, (2, 3, 4))
    parts: list[Callable[[float], list[dict[str, Any]]]] = [
        lambda average: order_rows(bench, average),
        lambda average: [interaction_row(bench, average)],
        lambda average: measured_rows(bench, average),
    ]
    for average in bench.size.averages:
        for part in parts:
            rows += part(average)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little of everything; proves nothing")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--methods", nargs="+", choices=["RTN", "GPTQ"], default=["RTN", "GPTQ"])
    parser.add_argument(
        "--windows", type=int, default=WINDOWS, help="of each kind to measure on (default 32)"
    )
    parser.add_argument("--main", action="store_true", help="only what the goals compare")
    parser.add_argument("--averages", nargs="+", type=float, choices=sorted(LEVELS), default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = QUICK if arguments.quick else Size()
    if arguments.averages:
        size = Size(**{**vars(size), "averages": tuple(arguments.averages)})
    cache = Cache("bits-decoder-quick" if arguments.quick else "bits-decoder")
    texts = load_texts(windows=arguments.windows)
    rows: list[dict[str, Any]] = []
    for method in arguments.methods:
        bench = Bench(method=method, size=size, cache=cache, texts=texts, main_only=arguments.main)
        rows += run(bench)
    reached = goals(rows)
    print_table("Perplexity", rows)
    print_table("Goals", reached)
    print_result("bits_decoder", results={"rows": rows, "goals": reached}, seeds=size.seeds)


if __name__ == "__main__":
    main()

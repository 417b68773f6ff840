"""GPTQ here and in llm-compressor: the same model, machine, threads, bits, groups and calibration, in turns.

    python benchmarks/gptq.py                # 15 minutes on a free core; goes on where it was stopped
    python benchmarks/gptq.py --threads 2
    python benchmarks/gptq.py --quick        # 16 windows, 3 bits, one repetition: checks that it runs

decoder12, 128 windows of 256 tokens, groups of 64, symmetric, act-order with static groups. llm-compressor runs in an
environment of its own under benchmarks/.cache, made at the first run (about 6 GB). Seconds are those of the work alone,
without import, load and save; the median over the repetitions is what counts, and processor seconds stand beside the
wall clock because machines are busy. Perplexity by the protocol of `decoder12.py`. Rows without a peer show what the
parts are worth. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from decoder12 import (
    Cache,
    batches,
    load_decoder,
    load_texts,
    model_directory,
    print_result,
    print_table,
    quality,
    report,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ireko_trainer.pipeline.precision import training_precision
from ireko_trainer.quant import (
    GptqOptions,
    ModelInMemory,
    QuantizedWeights,
    dequantize,
    describe,
    gptq_blocks,
)
from ireko_trainer.quant.layout import put_weight

PEER = "llmcompressor==0.14.0.1"
GROUP_SIZE = 64
BATCH = 8
WIDTHS = (2, 3, 4)
_HERE = Path(__file__).resolve().parent
_ENVIRONMENT = _HERE / ".cache" / "llm-compressor"
PASSES = training_precision(wanted="auto", device=torch.device("cpu"))
"""Number format of the calibration passes: bf16 where this machine multiplies it, as runs do."""
VARIANTS: Mapping[str, GptqOptions | None] = {
    "round to nearest": None,
    "GPTQ as published, on searched scales": GptqOptions(sweeps=0, weighted_scales=False),
    "with scales weighed by the inputs": GptqOptions(sweeps=0),
    "GPTQ, passes in float32": GptqOptions(),
    "GPTQ": GptqOptions(precision=PASSES),
    "GPTAQ": GptqOptions(asymmetry=0.5, precision=PASSES),
}
OURS = "GPTQ"


def peer_interpreter() -> Path:
    """The interpreter of an environment with llm-compressor; makes the environment at the first call."""
    python = _ENVIRONMENT / "bin" / "python"
    ready = _ENVIRONMENT / "ready"
    if not ready.is_file():
        report(f"making {_ENVIRONMENT} with {PEER}")
        uv = [sys.executable, "-m", "uv"]
        subprocess.run(
            [*uv, "venv", "--quiet", "--allow-existing", "-p", sys.executable, _ENVIRONMENT], check=True
        )
        subprocess.run([*uv, "pip", "install", "--quiet", "-p", python, PEER], check=True)
        ready.write_text(PEER)
    return python


def ours(
    model: PreTrainedModel, windows: Tensor, *, bits: int, options: GptqOptions | None
) -> dict[str, Any]:
    """Seconds, and the matrices by name."""
    layout = describe(model)
    modules = [m.module for block in layout.blocks.values() for m in block]
    wall, processor = time.perf_counter(), time.process_time()
    if options is None:
        rounded = QuantizedWeights(model=model, group_size=GROUP_SIZE)
        found = {name: rounded.at(name, bits) for name in modules}
    else:
        found = dict(
            gptq_blocks(
                source=ModelInMemory(model),
                batches=batches(windows, size=BATCH),
                bits=dict.fromkeys(modules, bits),
                group_size=GROUP_SIZE,
                options=options,
            )
        )
    seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    return {**seconds, "weights": {f"{name}.weight": dequantize(tensor) for name, tensor in found.items()}}


def peers(windows: Tensor, *, bits: int, threads: int) -> dict[str, Any]:
    """The same of llm-compressor, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        calibration, weights = Path(folder) / "calibration.safetensors", Path(folder) / "weights.safetensors"
        save_file({"windows": windows.contiguous()}, calibration)
        done = subprocess.run(
            [
                *(peer_interpreter(), _HERE / "llm_compressor_peer.py"),
                *(model_directory(), calibration, weights),
                *("--bits", str(bits), "--group-size", str(GROUP_SIZE)),
                *("--batch", str(BATCH), "--threads", str(threads)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return {**json.loads(done.stdout.splitlines()[-1]), "weights": load_file(weights)}


@dataclasses.dataclass
class Bench:
    """One model, one calibration set; every run is kept."""

    threads: int
    windows: int
    repeats: int
    widths: tuple[int, ...]
    cache: Cache

    def __post_init__(self) -> None:
        self.texts = load_texts()
        self.model = load_decoder()
        self.calibration = self.texts.calibration(self.windows)
        self.key = {"threads": self.threads, "windows": self.windows}

    def reference(self) -> float:
        """Perplexity of the unquantized model."""
        return float(self.cache.get({"what": "reference"}, lambda: quality(self.model, self.texts)))

    def run(self, name: str, bits: int, repeat: int) -> dict[str, float]:
        """Seconds and perplexity of one run."""
        key = {**self.key, "what": name, "bits": bits, "repeat": repeat}
        found: dict[str, float] = self.cache.get(key, lambda: self._run(name, bits))
        return found

    def _run(self, name: str, bits: int) -> dict[str, float]:
        if name == PEER:
            found = peers(self.calibration, bits=bits, threads=self.threads)
        else:
            found = ours(self.model, self.calibration, bits=bits, options=VARIANTS[name])
        seconds = {kind: round(found[kind], 2) for kind in ("wall", "processor")}
        return {**seconds, "perplexity": self._quality(found["weights"])}

    def _quality(self, weights: Mapping[str, Tensor]) -> float:
        linears = {name: self.model.get_submodule(name.removesuffix(".weight")) for name in weights}
        before = {name: module.weight.data for name, module in linears.items()}
        for name, module in linears.items():
            put_weight(module, weights[name])
        result = quality(self.model, self.texts)
        for name, module in linears.items():
            module.weight.data = before[name]
        return result


def compare(bench: Bench) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of every variant and of the peer, and what was asked for."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for bits in bench.widths:
        for repeat in range(bench.repeats):  # in turns, so that both meet the same load
            for name in (OURS, PEER):
                bench.run(name, bits, repeat)
        for name in (*VARIANTS, PEER):
            repeats = bench.repeats if name in (OURS, PEER) else 1
            runs = [bench.run(name, bits, repeat) for repeat in range(repeats)]
            perplexity = runs[0]["perplexity"]
            rows[name, bits] = {
                "method": name,
                "bits": bits,
                "perplexity": round(perplexity, 4),
                "excess": round(perplexity - bench.reference(), 4),
                **{
                    f"{kind} s": round(statistics.median(one[kind] for one in runs), 1)
                    for kind in ("wall", "processor")
                },
                "runs": repeats,
            }
    return list(rows.values()), [_judged(rows, bits) for bits in bench.widths]


def _judged(rows: Mapping[tuple[str, int], dict[str, Any]], bits: int) -> dict[str, Any]:
    mine, other = rows[OURS, bits], rows[PEER, bits]
    goal = {3: "30 % less excess", 4: "no higher perplexity"}.get(bits, "")
    return {
        "bits": bits,
        "wall time ratio": round(mine["wall s"] / other["wall s"], 3),
        "processor time ratio": round(mine["processor s"] / other["processor s"], 3),
        "excess removed": round(1 - mine["excess"] / other["excess"], 3),
        "GPTAQ's": round(1 - rows["GPTAQ", bits]["excess"] / other["excess"], 3),
        "goal": f"time ratio 0.40; {goal}".removesuffix("; "),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few windows; proves nothing about quality")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of both (default 3)")
    parser.add_argument("--widths", type=int, nargs="+", choices=WIDTHS, default=list(WIDTHS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(
        threads=arguments.threads,
        windows=16 if arguments.quick else 128,
        repeats=1 if arguments.quick else arguments.repeats,
        widths=(3,) if arguments.quick else tuple(arguments.widths),
        cache=Cache("gptq-quick" if arguments.quick else "gptq"),
    )
    rows, goals = compare(bench)
    print_table("GPTQ on decoder12", rows)
    print_table("Against llm-compressor", goals)
    print_result("gptq", results={"rows": rows, "goals": goals}, seeds=[0], peers={"peer": PEER})


if __name__ == "__main__":
    main()

"""What does nesting cost? One subnet's training step in the supernet against the plain model of that size.

    python benchmarks/supernet_step.py             # two minutes on one CPU thread
    python benchmarks/supernet_step.py --quick     # half a minute: checks that it runs, too few steps to report

The plain model is what one would train instead: the Hugging Face model of the subnet's config with PEFT's LoRA of
the same rank on the same linears. Both see the same batch and do the same work: forward, distillation loss,
backward, clipping, AdamW. MiniLM's sizes with random weights; 32 texts of 32 tokens; bfloat16 autocast.

Time: the two take turns, step by step, in one process; the ratio is the median of the ratios of neighbouring
steps, so that a machine that slows down slows both. Goal: at most 1.10.

Memory: each variant runs alone in a fresh process. `memoryRatio` is the ratio of the processes' peak resident
memory (Linux: VmHWM), `memoryRatioOfModel` the same with the imports' share taken off. The supernet holds the whole
model's frozen weights, the plain model only its own. On CUDA both are peaks of the allocator. Goal: at most 1.2.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from ireko_trainer.mlfs import Shape, Supernet, subnet_config
from ireko_trainer.mlfs.losses import answer_loss

RANK, ALPHA = 8, 16
ROWS, LENGTH = 32, 32
CONFIG = BertConfig(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    attn_implementation="eager",
)
SHAPES = {
    "half": Shape(hidden=384, heads=12, intermediate=384, layers=(0, 1, 2, 3, 4, 5)),
    "quarter": Shape(hidden=288, heads=9, intermediate=192, layers=(0, 1, 2, 3, 4, 5)),
    "quarter, 3 layers": Shape(hidden=384, heads=12, intermediate=384, layers=(0, 2, 5)),
}
PLAIN, NESTED = "plain", "nested"

Step = Callable[[], None]


def training_step(forward: Callable[[dict[str, Tensor]], Tensor], parameters: list[nn.Parameter]) -> Step:
    """One step of distillation over fixed text, the same for both variants."""
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (ROWS, LENGTH), generator=generator).to(device)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    teacher = torch.randn(ROWS, 2, generator=generator).to(device)

    def step() -> None:
        answer_loss(forward(batch), teacher, temperature=1.0).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def nested_step(shape: Shape, device: torch.device) -> Step:
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG).to(device)
    supernet = Supernet(model=model, rank=RANK, alpha=ALPHA, precision=torch.bfloat16)
    supernet.begin_stage("benchmark", seed=0)
    return training_step(lambda batch: supernet.forward(shape, batch)["logits"], supernet.trainable())


def plain_step(shape: Shape, device: torch.device) -> Step:
    torch.manual_seed(0)
    model = BertForSequenceClassification(subnet_config(CONFIG, shape)).eval()
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linears), model)
    model.to(device)

    def forward(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits: Tensor = model(**batch).logits
            return logits

    return training_step(forward, [parameter for parameter in model.parameters() if parameter.requires_grad])


BUILDERS = {PLAIN: plain_step, NESTED: nested_step}


def compare_times(shape: Shape, device: torch.device, *, steps: int) -> dict[str, float]:
    variants = {name: build(shape, device) for name, build in BUILDERS.items()}
    seconds: dict[str, list[float]] = {PLAIN: [], NESTED: []}
    for turn in range(5 + steps):
        # Who goes second finds the caches warmed by the other: take turns at that too.
        for name in (PLAIN, NESTED) if turn % 2 else (NESTED, PLAIN):
            start = time.perf_counter()
            variants[name]()
            if turn >= 5:
                seconds[name].append(time.perf_counter() - start)
    ratios = [nested / plain for nested, plain in zip(seconds[NESTED], seconds[PLAIN], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "timeRatio": round(statistics.median(ratios), 3),
        "timeRatioQuartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "plainMs": round(1e3 * statistics.median(seconds[PLAIN]), 1),
        "nestedMs": round(1e3 * statistics.median(seconds[NESTED]), 1),
    }


def peak_memory(
    variant: str, shape: Shape, device: torch.device, *, steps: int, threads: int
) -> tuple[int, int]:
    """Bytes at the peak of a fresh process: in all, and above what it held before the model."""
    context = multiprocessing.get_context("spawn")
    answers: Queue[tuple[int, int]] = context.Queue()
    process = context.Process(target=_report_peak, args=(variant, shape, device, steps, threads, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def _report_peak(
    variant: str,
    shape: Shape,
    device: torch.device,
    steps: int,
    threads: int,
    answers: Queue[tuple[int, int]],
) -> None:
    torch.set_num_threads(threads)
    before = _peak(device)
    step = BUILDERS[variant](shape, device)
    for _ in range(steps):
        step()
    peak = _peak(device)
    answers.put((peak, peak - before))


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage: a process that is started from a larger one inherits that one's ru_maxrss.
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def compare_memory(shape: Shape, device: torch.device, *, steps: int, threads: int) -> dict[str, float]:
    peaks = {name: peak_memory(name, shape, device, steps=steps, threads=threads) for name in BUILDERS}
    return {
        "memoryRatio": round(peaks[NESTED][0] / peaks[PLAIN][0], 3),
        "memoryRatioOfModel": round(peaks[NESTED][1] / peaks[PLAIN][1], 3),
        "plainMiB": round(peaks[PLAIN][0] / 2**20),
        "nestedMiB": round(peaks[NESTED][0] / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps and one shape: checks that it runs")
    parser.add_argument(
        "--steps", type=int, default=60, help="timed steps per variant and shape (default 60)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    steps = 5 if arguments.quick else arguments.steps
    shapes = {"half": SHAPES["half"]} if arguments.quick else SHAPES
    rows = {}
    for name, shape in shapes.items():
        rows[name] = compare_times(shape, device, steps=steps) | compare_memory(
            shape, device, steps=min(steps, 10), threads=arguments.threads
        )
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    results = {
        "timeRatio": max(row["timeRatio"] for row in rows.values()),
        "memoryRatio": max(row["memoryRatio"] for row in rows.values()),
        "memoryRatioOfModel": max(row["memoryRatioOfModel"] for row in rows.values()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": arguments.threads,
        "shapes": rows,
    }
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    versions["python"] = platform.python_version()
    print(json.dumps({"benchmark": "supernet_step", "results": results, "versions": versions, "seeds": [0]}))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

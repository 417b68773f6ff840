"""GPTQ by llm-compressor's `oneshot`, for `gptq.py`, which calls this with an interpreter that has it.

    python llm_compressor_peer.py MODEL CALIBRATION WEIGHTS --bits 3 --group-size 64 --batch 8 --threads 1

Reads windows of token ids, writes the quantized matrices as floats, and prints seconds (wall clock and processor) of
`oneshot` alone, without import and loading, as one JSON object on the last line.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("weights")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    windows = load_file(arguments.calibration)["windows"]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    recipe = GPTQModifier(
        actorder="static",
        ignore=["lm_head"],
        config_groups={
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": arguments.bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": arguments.group_size,
                },
            }
        },
    )
    dataset = Dataset.from_dict(
        {"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()}
    )
    wall, processor = time.perf_counter(), time.process_time()
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=dataset,
        recipe=recipe,
        batch_size=arguments.batch,
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
    )
    seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    matrices = {
        f"{name}.weight": module.weight.detach().float().contiguous()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    save_file(matrices, arguments.weights)
    print(json.dumps({**seconds, "versions": {name: version(name) for name in ("llmcompressor", "torch")}}))


if __name__ == "__main__":
    main()

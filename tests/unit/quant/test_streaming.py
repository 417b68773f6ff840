"""Models on disk: the same file as from memory, with one block at a time in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ireko_trainer.errors import UserError
from ireko_trainer.quant import QuantizedWeights, describe, save_quantized, stored_size
from ireko_trainer.quant.blockwise import ModelInMemory, gptq_blocks
from ireko_trainer.quant.streaming import ModelOnDisk, quantize_on_disk

Decoder = Callable[..., PreTrainedModel]


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [{"input_ids": torch.randint(5, 101, (2, 12), generator=generator)} for _ in range(3)]


def bits_of(model: PreTrainedModel) -> dict[str, int]:
    layout = describe(model)
    bits = layout.module_bits(dict.fromkeys(layout.blocks, 3))
    first = next(iter(layout.blocks.values()))
    return bits | {matrix.module: 4 for matrix in first[:3]}


@pytest.mark.parametrize(
    ("style", "tied", "shard"), [("llama", True, "1GB"), ("qwen3", False, "20KB"), ("gemma3", True, "1GB")]
)
def test_the_file_is_byte_for_byte_that_of_the_whole_model(
    style: str, tied: bool, shard: str, decoder: Decoder, tmp_path: Path
) -> None:
    decoder(style, tied=tied).to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size=shard)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    bits = bits_of(whole)
    blocks = {m.module for block in describe(whole).blocks.values() for m in block}
    found = dict(
        gptq_blocks(
            source=ModelInMemory(whole),
            batches=batches(),
            bits={name: width for name, width in bits.items() if name in blocks},
            group_size=32,
        )
    )
    weights = QuantizedWeights(model=whole, group_size=32, given=found)
    expected = save_quantized(
        model=whole, bits=bits, group_size=32, directory=tmp_path / "whole", weights=weights
    )
    streamed = quantize_on_disk(
        source=ModelOnDisk(tmp_path / "model"),
        batches=batches(),
        bits=bits,
        group_size=32,
        directory=tmp_path / "streamed",
    )
    for file in ("model.safetensors", "config.json"):
        assert (streamed / file).read_bytes() == (expected / file).read_bytes()
    assert sorted(path.name for path in streamed.iterdir()) == sorted(
        path.name for path in expected.iterdir()
    )
    size = stored_size(describe(whole), bits=bits, group_size=32).total
    assert (streamed / "model.safetensors").stat().st_size == size
    loaded = AutoModelForCausalLM.from_pretrained(streamed)
    with torch.no_grad():
        assert bool(torch.isfinite(loaded(**batches()[0]).logits).all())


def test_one_block_has_storage_at_a_time(decoder: Decoder, tmp_path: Path) -> None:
    decoder("llama", layers=4).save_pretrained(tmp_path / "model")
    source = ModelOnDisk(tmp_path / "model")
    blocks = [source.model.get_submodule(name) for name in source.names]

    def filled() -> list[bool]:
        return [not parameter.is_meta for block in blocks for parameter in block.parameters()]

    assert not any(filled())
    seen = []
    for name, block in zip(source.names, blocks, strict=True):
        with source.block(name):
            seen.append(sum(filled()) == sum(1 for _ in block.parameters()))
            assert not any(parameter.is_meta for parameter in block.parameters())
    assert seen == [True] * 4
    assert not any(filled())


def test_an_interrupted_run_leaves_no_file(decoder: Decoder, tmp_path: Path) -> None:
    model = decoder("llama")
    model.save_pretrained(tmp_path / "model")

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        quantize_on_disk(
            source=ModelOnDisk(tmp_path / "model"),
            batches=batches(),
            bits=bits_of(model),
            group_size=32,
            directory=tmp_path / "out",
            on_block=stop,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_directory_without_safetensors_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    decoder("llama").config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        ModelOnDisk(tmp_path)


def test_a_missing_tensor_is_named(decoder: Decoder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    decoder("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"no tensor called model\.norm\.weight"):
        ModelOnDisk(tmp_path)

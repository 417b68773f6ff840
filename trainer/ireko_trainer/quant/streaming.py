"""Models larger than memory: read block by block from their files, written block by block into the packed file.

The model is built without storage; what lies outside its blocks (embeddings, norm, head) is loaded, a block is read
from the mapped safetensors files when its turn comes and dropped when it is done. The packed file has known offsets
before its first tensor exists (`storage.py` predicts it to the byte), so tensors go to their places as they come.
Peak: everything outside the blocks, one block in float32, and the calibration batches' hidden states.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from ireko_trainer.errors import UserError
from ireko_trainer.quant.blockwise import OnBlock, gptq_blocks
from ireko_trainer.quant.calls import Batch, Recorded, record
from ireko_trainer.quant.checkpoint import (
    WEIGHTS_NAME,
    as_float16,
    check_storable,
    save_config,
    stored_form,
)
from ireko_trainer.quant.gptq import DEFAULT_OPTIONS, GptqOptions
from ireko_trainer.quant.grid import quantize
from ireko_trainer.quant.layout import block_modules, describe
from ireko_trainer.quant.storage import StoredTensor, file_header, matrix_group, stored_tensors

_INDEX_NAME = "model.safetensors.index.json"


class ModelOnDisk:
    """The blocks of a Hugging Face checkpoint directory with safetensors files; a `BlockSource`.

    `model` has no storage inside its blocks, except in the one that `block` has open.
    """

    def __init__(self, directory: Path, *, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._files = _SafetensorsFiles(directory)
        self.model = _hollow_model(directory)
        self._blocks = block_modules(self.model)
        inside = {id(p) for block in self._blocks.values() for p in block.parameters()}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in inside and self._has(name):
                _give(self.model, name, self.tensor(name).to(self._device))
        self.model.tie_weights()
        self._check_complete(inside)
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(self._device)

    @property
    def names(self) -> Sequence[str]:
        """The blocks in the order of the forward pass."""
        return tuple(self._blocks)

    def record(self, batch: Batch) -> Recorded:
        """What the blocks are called with for this batch."""
        moved = {name: tensor.to(self._device) for name, tensor in batch.items()}
        return record(model=self.model, blocks=list(self._blocks.values()), batch=moved)

    @contextmanager
    def block(self, name: str) -> Iterator[nn.Module]:
        """The block, read from its files; its weights are dropped when the context ends."""
        block = self._blocks[name]
        keys = [key for key, _ in block.named_parameters()]
        try:
            for key in keys:
                _give(block, key, self.tensor(f"{name}.{key}").to(self._device))
            yield block
        finally:
            for key in keys:
                _give(block, key, block.get_parameter(key).data.to("meta"))

    def tensor(self, name: str) -> Tensor:
        """One stored tensor by its name in the model, floats as float32."""
        tensor = self._files.read(self._key(name))
        return tensor.float() if tensor.is_floating_point() else tensor

    def _has(self, name: str) -> bool:
        return any(key in self._files for key in self._spellings(name))

    def _key(self, name: str) -> str:
        for key in self._spellings(name):
            if key in self._files:
                return key
        raise UserError(
            f"{self._files.directory}: no tensor called {name}; load and save the checkpoint once with transformers' "
            "save_pretrained, which renames the tensors of older formats"
        )

    def _spellings(self, name: str) -> tuple[str, ...]:
        prefix = f"{self.model.base_model_prefix}."
        return name, prefix + name, name.removeprefix(prefix)

    def _check_complete(self, inside: set[int]) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.is_meta and id(parameter) not in inside:
                self._key(name)


def quantize_on_disk(
    *,
    source: ModelOnDisk,
    batches: Sequence[Batch],
    bits: Mapping[str, int],
    group_size: int,
    directory: Path,
    options: GptqOptions = DEFAULT_OPTIONS,
    on_block: OnBlock | None = None,
) -> Path:
    """Do GPTQ on the blocks and rounding on the rest of `bits`, and write what `save_quantized` would write.

    The tokenizer is the caller's. Returns `directory`.
    """
    layout = describe(source.model)
    check_storable(type(source.model).__name__, layout, bits)
    directory.mkdir(parents=True, exist_ok=True)
    inside = {m.module: m for block in layout.blocks.values() for m in block}
    entries = stored_tensors(layout, bits=bits, group_size=group_size)
    with _SafetensorsWriter(directory / WEIGHTS_NAME, entries) as writer:
        for matrix in (*layout.embeddings, *layout.head):
            if matrix.module in bits:
                tensor = quantize(
                    source.tensor(f"{matrix.module}.weight"),
                    bits=bits[matrix.module],
                    group_size=matrix_group(matrix, group_size=group_size),
                )
                writer.write(stored_form(matrix, tensor))
        for module, tensor in gptq_blocks(
            source=source,
            batches=batches,
            bits={name: width for name, width in bits.items() if name in inside},
            group_size=group_size,
            options=options,
            on_block=on_block,
        ):
            writer.write(stored_form(inside[module], tensor))
        for name in writer.missing():
            tensor_ = source.tensor(name)
            writer.write({name: as_float16(name, tensor_) if tensor_.is_floating_point() else tensor_})
    save_config(model=source.model, layout=layout, bits=bits, group_size=group_size, directory=directory)
    return directory


class _SafetensorsFiles:
    """The tensors of one file, or of several under an index, mapped into memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        index = directory / _INDEX_NAME
        if index.is_file():
            places: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
            self._places = {name: directory / file for name, file in places.items()}
            return
        single = directory / WEIGHTS_NAME
        if not single.is_file():
            raise UserError(
                f"{directory}: neither {WEIGHTS_NAME} nor {_INDEX_NAME}; convert the checkpoint to safetensors"
            )
        with safe_open(single, framework="pt") as file:
            self._places = dict.fromkeys(file.keys(), single)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> Tensor:
        with safe_open(self._places[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


class _SafetensorsWriter:
    """A safetensors file whose header is known, filled in any order; there under its name only when complete."""

    def __init__(self, path: Path, entries: list[StoredTensor]) -> None:
        self._path, self._partial = path, path.with_suffix(".partial")
        header = file_header(entries)
        self._places: dict[str, tuple[int, StoredTensor]] = {}
        offset = len(header)
        for entry in entries:
            self._places[entry.name] = offset, entry
            offset += entry.size
        self._file = self._partial.open("wb")
        self._file.write(header)
        self._file.truncate(offset)

    def __enter__(self) -> _SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None or self._places:
            self._partial.unlink()
            if kind is None:
                raise RuntimeError(f"never written: {sorted(self._places)}")
            return
        self._partial.replace(self._path)

    def missing(self) -> list[str]:
        """The entries that nobody has written yet."""
        return list(self._places)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors into their places."""
        for name, tensor in tensors.items():
            offset, entry = self._places.pop(name)
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise RuntimeError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {entry}")
            self._file.seek(offset)
            self._file.write(tensor.contiguous().cpu().numpy().tobytes())


def _hollow_model(directory: Path) -> PreTrainedModel:
    """The model of a directory's config: parameters on the meta device, buffers real."""
    config = AutoConfig.from_pretrained(directory)
    names = config.architectures or []
    model_class = getattr(transformers, names[0], None) if names else None
    if model_class is None:
        raise UserError(
            f"{directory / 'config.json'}: architectures must name a class of transformers, found {names}"
        )
    with _parameters_on_meta():
        model: PreTrainedModel = model_class(config)
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Drop the storage of every parameter at birth. Buffers stay: rotary frequencies are in no file."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _give(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter by its dotted name."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))

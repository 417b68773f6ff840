from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from ireko_trainer.errors import UserError
from ireko_trainer.quant import (
    QuantizedWeights,
    dequantize,
    describe,
    effective_bits,
    fake_quantize_,
    fake_quantized,
    quantize,
    save_quantized,
    stored_size,
)

FAMILIES = ["bert", "roberta", "distilbert"]
Batch = dict[str, torch.Tensor]


def mixed_bits(model: PreTrainedModel) -> dict[str, int]:
    """Every width in every block; embeddings and head at 8."""
    layout = describe(model)
    bits = layout.module_bits(dict.fromkeys(layout.blocks, 2))
    for matrices in layout.blocks.values():
        bits |= {matrix.module: (2, 3, 4, 8)[index % 4] for index, matrix in enumerate(matrices)}
    return bits


def output(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        result = model(**batch)
    return result.logits if "logits" in result else result.last_hidden_state


def file_bytes(directory: Path) -> int:
    return (directory / "model.safetensors").stat().st_size


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("classifier", [False, True])
def test_the_saved_checkpoint_loads_exactly(
    family: str, classifier: bool, build: Any, batch: Batch, tmp_path: Path
) -> None:
    model = build(family, classifier=classifier)
    bits = mixed_bits(model)
    assert set(bits.values()) == {2, 3, 4, 8}
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    loader = AutoModelForSequenceClassification if classifier else AutoModel
    loaded = loader.from_pretrained(tmp_path).eval()
    original = output(model, batch)
    fake_quantize_(model, bits=bits, group_size=64)
    assert torch.equal(output(loaded, batch), output(model, batch))
    assert not torch.equal(original, output(model, batch))
    unpacked = loaded.state_dict()
    assert all(torch.equal(unpacked[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 128), (96, 40), (48, 100)])
def test_rows_that_no_group_divides_load_exactly(
    hidden: int, intermediate: int, build: Any, batch: Batch, tmp_path: Path
) -> None:
    model = build("bert", hidden=hidden, intermediate=intermediate, layers=2)
    bits = mixed_bits(model)
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    predicted = stored_size(describe(model), bits=bits, group_size=64)
    assert file_bytes(tmp_path) == predicted.total
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    with fake_quantized(model, bits=bits, group_size=64):
        assert torch.equal(output(loaded, batch), output(model, batch))


def test_a_classifier_checkpoint_loads_into_the_bare_encoder(
    build: Any, batch: Batch, tmp_path: Path
) -> None:
    model = build("bert", classifier=True)
    bits = mixed_bits(model)
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    bare = AutoModel.from_pretrained(tmp_path).eval()
    with fake_quantized(model, bits=bits, group_size=64):
        expected = output(model.base_model, batch)
    assert torch.equal(output(bare, batch), expected)


def test_the_config_names_every_module_once_at_its_width_and_its_writer(build: Any, tmp_path: Path) -> None:
    model = build("bert", classifier=True)
    bits = mixed_bits(model)
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["version"] == importlib.metadata.version("compressed-tensors")
    groups = config["config_groups"].values()
    for module in dict(model.named_modules()):
        widths = [
            group["weights"]["num_bits"]
            for group in groups
            for target in group["targets"]
            if re.match(target.removeprefix("re:"), module)
        ]
        assert widths == ([bits[module]] if module in bits else []), module


def test_modules_left_out_are_stored_as_float16_and_load_exactly(
    build: Any, batch: Batch, tmp_path: Path
) -> None:
    model = build("bert")
    bits = {"encoder.layer.1.output.dense": 3}
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    assert file_bytes(tmp_path) == stored_size(describe(model), bits=bits, group_size=64).total
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    fake_quantize_(model, bits=bits, group_size=64)
    assert torch.equal(output(loaded, batch), output(model, batch))


def test_without_bits_the_checkpoint_is_plain_float16(build: Any, batch: Batch, tmp_path: Path) -> None:
    model = build("bert")
    save_quantized(model=model, bits={}, group_size=64, directory=tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.dtype == torch.float32
    fake_quantize_(model, bits={}, group_size=64)
    assert torch.equal(output(loaded, batch), output(model, batch))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [2, 3, 4, 8])
@pytest.mark.parametrize("classifier", [False, True])
def test_the_predicted_size_is_the_length_of_the_file(
    family: str, width: int, classifier: bool, build: Any, tmp_path: Path
) -> None:
    model = build(family, classifier=classifier, layers=2)
    layout = describe(model)
    bits = layout.module_bits(dict.fromkeys(layout.blocks, width))
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    assert stored_size(layout, bits=bits, group_size=64).total == file_bytes(tmp_path)


def test_the_size_is_known_without_weights(build: Any) -> None:
    model = build("bert", classifier=True)
    with torch.device("meta"):
        ghost = AutoModelForSequenceClassification.from_config(model.config)
    assert describe(ghost) == describe(model)


def test_embeddings_are_counted_apart(build: Any) -> None:
    layout = describe(build("bert"))
    bits = layout.module_bits(dict.fromkeys(layout.blocks, 2))
    tables = sum(m.weights + 2 * m.rows for m in layout.embeddings)
    assert stored_size(layout, bits=bits, group_size=64).embeddings == tables


def test_effective_bits_add_the_scales(build: Any) -> None:
    layout = describe(build("bert", hidden=64, intermediate=128))
    linear = {m.module: 4 for m in layout.matrices if not m.table}
    tables = sum(m.weights for m in layout.embeddings)
    weights = sum(m.weights for m in layout.matrices)
    shapes = 16 * 8 * len(linear)
    expected = (16 * tables + 4.25 * (weights - tables) + shapes) / weights
    assert effective_bits(layout, bits=linear, group_size=64) == pytest.approx(expected)


def test_leaving_the_with_block_restores_the_very_same_floats(build: Any, batch: Batch) -> None:
    model = build("bert")
    before = output(model, batch)
    tensors = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}

    def evaluate_and_fail() -> None:
        with fake_quantized(model, bits=mixed_bits(model), group_size=64):
            assert not torch.equal(output(model, batch), before)
            raise KeyError

    with pytest.raises(KeyError):
        evaluate_and_fail()
    after = model.state_dict()
    assert all(after[name].data_ptr() == pointer for name, (pointer, _) in tensors.items())
    assert all(torch.equal(after[name], value) for name, (_, value) in tensors.items())


def test_shared_weights_quantize_the_originals_even_inside_a_candidate(build: Any) -> None:
    model = build("bert")
    weights = QuantizedWeights(model=model, group_size=64)
    name = "encoder.layer.0.attention.self.query"
    expected = QuantizedWeights(model=model, group_size=64).at(name, 4)
    with fake_quantized(model, bits={name: 2}, group_size=64, weights=weights):
        inside = weights.at(name, 4)
    assert torch.equal(inside.codes, expected.codes)
    assert weights.at(name, 4) is inside


def test_tied_embeddings_are_one_matrix_and_load_exactly_in_both_places(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    model = BertForMaskedLM(config).eval()
    layout = describe(model)
    words = next(m for m in layout.embeddings if m.module == "bert.embeddings.word_embeddings")
    assert words.aliases == ("cls.predictions.decoder",)
    bits = layout.module_bits(dict.fromkeys(layout.blocks, 4))
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    assert file_bytes(tmp_path) == stored_size(layout, bits=bits, group_size=64).total
    loaded = BertForMaskedLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(5, 25)[None]
    fake_quantize_(model, bits=bits, group_size=64)
    assert torch.equal(output(loaded, {"input_ids": ids}), output(model, {"input_ids": ids}))


def test_tied_embeddings_left_out_are_stored_once_as_floats(tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    bits = {"model.layers.0.mlp.up_proj": 5, "model.layers.0.mlp.down_proj": 6}
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("lm_head")]  # noqa: SIM118
    assert file_bytes(tmp_path) == stored_size(describe(model), bits=bits, group_size=64).total
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    fake_quantize_(model, bits=bits, group_size=64)
    ids = torch.arange(5, 25)[None]
    assert torch.equal(output(loaded, {"input_ids": ids}), output(model, {"input_ids": ids}))


@pytest.mark.parametrize("tied", [False, True])
def test_decoders_load_exactly_too(tied: bool, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    layout = describe(model)
    assert [m.module for m in layout.head] == ([] if tied else ["lm_head"])
    bits = mixed_bits(model)
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    assert file_bytes(tmp_path) == stored_size(layout, bits=bits, group_size=64).total
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    fake_quantize_(model, bits=bits, group_size=64)
    ids = torch.arange(5, 25)[None]
    assert torch.equal(output(loaded, {"input_ids": ids}), output(model, {"input_ids": ids}))


def test_conv1d_is_quantized_as_its_linear_twin_and_refused_in_files(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=50, n_positions=20)).eval()
    weight = model.h[0].attn.c_attn.weight.detach().clone()
    bits = {"h.0.attn.c_attn": 3}
    with pytest.raises(UserError, match=r"GPT2Model: .*h\.0\.attn\.c_attn is a Conv1D"):
        save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    fake_quantize_(model, bits=bits, group_size=64)
    expected = dequantize(quantize(weight.T, bits=3, group_size=64)).T
    assert torch.equal(model.h[0].attn.c_attn.weight, expected)


def test_models_without_linear_blocks_are_refused_by_name() -> None:
    model = torch.nn.Module()
    model.h = torch.nn.ModuleList([torch.nn.LayerNorm(4)])
    with pytest.raises(UserError, match=r"Module: h\.0 has no linear layer"):
        describe(model)  # type: ignore[arg-type]


def test_embeddings_below_eight_bits_are_refused(build: Any) -> None:
    with pytest.raises(ValueError, match="8 bits or as float16"):
        fake_quantize_(build("bert"), bits={"embeddings.word_embeddings": 4}, group_size=64)


def test_an_unknown_module_is_refused(build: Any) -> None:
    model = build("bert")
    with pytest.raises(ValueError, match="not quantizable"):
        fake_quantize_(model, bits={"encoder.layer.9.dense": 4}, group_size=64)
    with pytest.raises(ValueError, match="not quantizable"):
        stored_size(describe(model), bits={"encoder.layer.9.dense": 4}, group_size=64)


def test_values_beyond_float16_are_refused_by_name(build: Any) -> None:
    model = build("bert")
    with torch.no_grad():
        model.embeddings.LayerNorm.weight[0] = 1e6
    with pytest.raises(UserError, match=r"embeddings\.LayerNorm\.weight"):
        fake_quantize_(model, bits={}, group_size=64)


def test_parameters_must_be_float32(build: Any) -> None:
    with pytest.raises(ValueError, match=r"model\.float\(\)"):
        fake_quantize_(build("bert").to(torch.bfloat16), bits={}, group_size=64)


def test_the_real_encoder_loads_exactly_and_shrinks(minilm_dir: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(minilm_dir, add_pooling_layer=False).eval()
    layout = describe(model)
    bits = layout.module_bits({name: (2, 3, 4, 8, 3, 4)[i] for i, name in enumerate(layout.blocks)})
    save_quantized(model=model, bits=bits, group_size=64, directory=tmp_path)
    assert file_bytes(tmp_path) == stored_size(layout, bits=bits, group_size=64).total
    assert file_bytes(tmp_path) < 18 * 2**20
    loaded = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    fake_quantize_(model, bits=bits, group_size=64)
    batch = {"input_ids": torch.randint(1000, 20000, (2, 9), generator=torch.Generator().manual_seed(0))}
    assert torch.equal(output(loaded, batch), output(model, batch))

"""The axis tables say where every parameter lies, and refuse what they do not know."""

from __future__ import annotations

import pytest
import torch
from tests.unit.mlfs.conftest import DECODERS, KINDS, SMALL, ask, make_batch, make_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPTNeoXConfig,
)

from ireko_trainer.errors import UserError
from ireko_trainer.mlfs import (
    Axis,
    Shape,
    Supernet,
    architecture_of,
    count_parameters,
    layout_of,
    subnet_config,
    teacher_shape,
)


@pytest.mark.parametrize("task", [True, False])
def test_the_axis_table_places_every_parameter(family: str, task: bool) -> None:
    model = make_model(family, task=task)
    assert set(layout_of(model).places) == {name for name, _ in model.named_parameters()}


def test_every_dimension_as_long_as_an_elastic_axis_lies_on_one(family: str) -> None:
    # These sizes are no other size of the model, so a wrong FIXED in a table shows.
    model = make_model(family, hidden=48, intermediate=96, heads=4)
    layout = layout_of(model)
    heads = 4 * layout.head_size
    groups = heads // layout.heads.per_group
    elastic = {48, 96, heads, groups, heads + 2 * groups, 2 * 96}
    for place in layout.places.values():
        for axis, size in zip(place.axes, place.size, strict=True):
            assert (size in elastic) == (axis is not Axis.FIXED)


def test_a_parameter_outside_the_table_is_refused_by_name() -> None:
    model = BertForMaskedLM(
        BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match=r"cls\.predictions\.bias .*architectures\.py"):
        layout_of(model)


def test_a_tensor_that_contradicts_the_config_is_refused(family: str) -> None:
    model = make_model(family)
    setattr(model.config, architecture_of(model.config).config.intermediate, 64)
    with pytest.raises(ValueError, match=r"has size .* but the config"):
        layout_of(model)


def test_an_unknown_family_is_told_which_are_known() -> None:
    with pytest.raises(UserError, match=r"'gpt_neox'.*bert.*llama.*roberta.*architectures\.py.*decoders\.py"):
        architecture_of(GPTNeoXConfig())


def test_counting_the_full_shape_counts_the_model(family: str) -> None:
    model = make_model(family)
    count = count_parameters(model, teacher_shape(model.config))
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    tied = getattr(model.config, "tie_word_embeddings", False) and family in DECODERS
    assert min(count.body, count.embeddings) > 0
    assert (count.head == 0) == tied


def test_counting_a_subnet_counts_the_model_of_its_config(family: str) -> None:
    model = make_model(family)
    config = subnet_config(model.config, SMALL)
    small = type(model)(config)
    assert count_parameters(model, SMALL).total == sum(parameter.numel() for parameter in small.parameters())
    assert teacher_shape(config) == Shape(hidden=24, heads=2, intermediate=32, layers=(0, 1))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_the_kept_layers_keep_their_kinds_of_attention(family: str) -> None:
    model = make_model(family)
    config = subnet_config(model.config, Shape(hidden=48, heads=4, intermediate=96, layers=(0, 2, 3)))
    assert model.config.layer_types == [*KINDS, *KINDS]
    assert config.layer_types == [KINDS[0], KINDS[0], KINDS[1]]
    assert config.sliding_window == model.config.sliding_window


def test_query_heads_are_cut_with_their_key_value_head() -> None:
    model = make_model("llama")
    config = subnet_config(model.config, Shape(hidden=32, heads=2, intermediate=96, layers=(0, 1, 2, 3)))
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 12)
    with pytest.raises(UserError, match=r"3 heads .* stay together.*nearest is 4 heads"):
        subnet_config(model.config, Shape(hidden=48, heads=3, intermediate=96, layers=(0,)))


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_head_is_cut_out_with_the_channels_that_it_had(family: str) -> None:
    model = make_model(family)
    layout = layout_of(model)
    shape = Shape(hidden=24, heads=2, intermediate=96, layers=(0, 1, 2, 3))
    name = "self_attn.qkv_proj" if family == "phi3" else "self_attn.q_proj"
    place = layout.places[layout.block_name(0, f"{name}.weight")]
    rows, columns = layout.parts(place, shape)
    assert columns == (slice(0, 24),)
    # Phi-3: queries [0, 48), keys [48, 72), values [72, 96), of which half is kept each.
    expected = (slice(0, 24), slice(48, 60), slice(72, 84)) if family == "phi3" else (slice(0, 24),)
    assert rows == expected


def test_a_decoder_that_classifies_is_nested_too() -> None:
    config = make_model("llama").config
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    supernet, batch = Supernet(model=model), make_batch()
    assert torch.equal(ask(supernet.extract(SMALL), batch), supernet.forward(SMALL, batch).logits)


def test_a_quarter_of_the_body_of_minilm_is_a_quarter(minilm_dir: object) -> None:
    config = AutoConfig.from_pretrained(minilm_dir)
    with torch.device("meta"):
        from transformers import BertForSequenceClassification

        model = BertForSequenceClassification(config)
    full = count_parameters(model, teacher_shape(config)).body
    quarter = Shape(hidden=288, heads=9, intermediate=192, layers=tuple(range(6)))
    half = Shape(hidden=384, heads=12, intermediate=384, layers=tuple(range(6)))
    assert count_parameters(model, quarter).body / full == pytest.approx(0.25, abs=0.002)
    assert count_parameters(model, half).body / full == pytest.approx(0.50, abs=0.002)

"""The axis tables say where every parameter lies, and refuse what they do not know."""

from __future__ import annotations

import pytest
import torch
from tests.unit.mlfs.conftest import SMALL, make_model
from transformers import AutoConfig, BertConfig, BertForMaskedLM, GPT2Config

from ireko_trainer.errors import UserError
from ireko_trainer.mlfs import (
    Axis,
    Shape,
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
    # 48, 96 and the head size are no other size of this model, so a wrong FIXED in a table shows.
    model = make_model(family, hidden=48, intermediate=96, heads=4)
    for place in layout_of(model).places.values():
        for axis, size in zip(place.axes, place.size, strict=True):
            assert (size in (48, 96)) == (axis is not Axis.FIXED)


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
    with pytest.raises(UserError, match=r"'gpt2'.*bert, distilbert, roberta.*architectures\.py"):
        architecture_of(GPT2Config())


def test_counting_the_full_shape_counts_the_model(family: str) -> None:
    model = make_model(family)
    count = count_parameters(model, teacher_shape(model.config))
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert min(count.body, count.embeddings, count.head) > 0


def test_counting_a_subnet_counts_the_model_of_its_config(family: str) -> None:
    model = make_model(family)
    config = subnet_config(model.config, SMALL)
    small = type(model)(config)
    assert count_parameters(model, SMALL).total == sum(parameter.numel() for parameter in small.parameters())
    assert teacher_shape(config) == Shape(hidden=24, heads=2, intermediate=32, layers=(0, 1))


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

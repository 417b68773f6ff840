"""Teachers load with the right head, and checkpoints that must not or cannot be used are refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from ireko_api.spec import Teacher
from ireko_trainer.data import LabelSpace
from ireko_trainer.errors import UserError
from ireko_trainer.teacher import LoadedTeacher, head_labels, load_teacher

SaveTeacher = Callable[..., Path]
SENTIMENT = LabelSpace(names=("negative", "positive"))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedTeacher]:
    def load_from(
        directory: Path,
        *,
        task: str = "text-classification",
        labels: LabelSpace | None = SENTIMENT,
        seed: int = 0,
        **spec: object,
    ) -> LoadedTeacher:
        return load_teacher(
            spec=Teacher(model=str(directory), task=task, **spec),
            base_dir=tmp_path,
            cache_dir=tmp_path / "cache",
            labels=labels,
            seed=seed,
        )

    return load_from


def change_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def to_pickle(directory: Path) -> None:
    """Replace the safetensors file by the older pickle of the same weights."""
    weights = load_file(directory / "model.safetensors")
    torch.save(weights, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def test_an_encoder_loads_without_its_pooling_layer(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    teacher = load(save_teacher(), task="feature-extraction", labels=None)
    assert type(teacher.model).__name__ == "BertModel"
    assert teacher.model.pooler is None
    assert not teacher.model.training
    assert teacher.model.dtype == torch.float32
    assert teacher.model.config._attn_implementation == "eager"
    assert teacher.labels is None
    assert not teacher.new_head


def test_families_without_a_pooling_option_load_too(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher()
    config = DistilBertConfig(vocab_size=12, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    DistilBertModel(config).save_pretrained(directory)
    teacher = load(directory, task="feature-extraction", labels=None)
    assert "token_type_ids" not in teacher.tokenizer(["a film"])


def test_a_head_that_fits_is_kept(load: Callable[..., LoadedTeacher], save_classifier: SaveTeacher) -> None:
    directory = save_classifier(num_labels=2)
    teacher = load(directory)
    saved = load_file(directory / "model.safetensors")["classifier.weight"]
    assert torch.equal(teacher.model.classifier.weight, saved)
    assert teacher.model.config.id2label == {0: "negative", 1: "positive"}
    assert teacher.model.config.problem_type == "single_label_classification"
    assert not teacher.new_head


def test_without_labels_the_heads_own_are_taken(
    load: Callable[..., LoadedTeacher], save_classifier: SaveTeacher
) -> None:
    directory = save_classifier(id2label={0: "x", 1: "y", 2: "z"}, label2id={"x": 0, "y": 1, "z": 2})
    assert load(directory, labels=None).labels == LabelSpace(names=("x", "y", "z"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_labels": 2}, LabelSpace(names=("LABEL_0", "LABEL_1"))),
        ({"num_labels": 3}, LabelSpace(names=("LABEL_0", "LABEL_1", "LABEL_2"))),
        ({"num_labels": 1}, LabelSpace(regression=True)),
    ],
)
def test_the_labels_of_a_head_are_in_its_configuration(
    config: dict[str, int], expected: LabelSpace, save_classifier: SaveTeacher
) -> None:
    assert head_labels(save_classifier(**config)) == expected


def test_an_encoder_has_no_head_labels(save_teacher: SaveTeacher) -> None:
    assert head_labels(save_teacher()) is None


def test_a_new_head_is_drawn_from_the_seed_and_changes_nothing_else(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher()
    before = torch.random.get_rng_state()
    first, again, other = (load(directory, seed=seed) for seed in (0, 0, 1))
    assert first.new_head
    assert first.labels == SENTIMENT
    assert torch.equal(first.model.classifier.weight, again.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    saved = load_file(directory / "model.safetensors")
    assert torch.equal(
        first.model.bert.encoder.layer[1].output.dense.weight, saved["encoder.layer.1.output.dense.weight"]
    )
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_regression_head_has_one_output(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    teacher = load(save_teacher(), labels=LabelSpace(regression=True))
    assert teacher.model.classifier.weight.shape == (1, 32)
    assert teacher.model.config.problem_type == "regression"


def test_a_language_model_becomes_a_classifier_though_it_has_no_pooling_layer(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    assert load(save_teacher(model_class=BertForMaskedLM)).new_head


def test_the_manifest_chooses_the_number_format(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    teacher = load(save_teacher(), task="feature-extraction", labels=None, dtype="bfloat16")
    assert teacher.model.dtype == torch.bfloat16


def test_pickled_tensors_load_like_safetensors(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher()
    expected = load(directory, task="feature-extraction").model.state_dict()
    to_pickle(directory)
    actual = load(directory, task="feature-extraction").model.state_dict()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_sharded_weights_load_and_count_in_the_digest(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher()
    whole = load(directory, task="feature-extraction").model
    (directory / "model.safetensors").unlink()
    whole.save_pretrained(directory, max_shard_size="20KB")
    teacher = load(directory, task="feature-extraction")
    shard = sorted(directory.glob("model-*.safetensors"))[0]
    save_file(
        {name: tensor + 1 for name, tensor in load_file(shard).items()}, shard, metadata={"format": "pt"}
    )
    assert load(directory, task="feature-extraction").sha256 != teacher.sha256


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_the_digest_covers_configuration_weights_and_tokenizer(
    file: str, load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher()
    before = load(directory, task="feature-extraction").sha256
    assert load(directory, task="feature-extraction").sha256 == before
    if file.endswith(".json"):
        (directory / file).write_text((directory / file).read_text() + "\n")
    else:
        weights = load_file(directory / file)
        save_file({name: tensor + 1 for name, tensor in weights.items()}, directory / file, {"format": "pt"})
    assert load(directory, task="feature-extraction").sha256 != before


def test_the_tokenizer_stops_where_the_positions_end(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher(max_position_embeddings=24)
    assert load(directory, task="feature-extraction").tokenizer.model_max_length == 24
    config = RobertaConfig(
        vocab_size=12,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=26,
        type_vocab_size=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    RobertaModel(config).save_pretrained(directory)
    teacher = load(directory, task="feature-extraction")
    assert teacher.tokenizer.model_max_length == 24  # positions start at pad_token_id + 1 = 2
    longest = teacher.tokenizer(["good " * 50], truncation=True, return_tensors="pt")
    assert teacher.model(**longest).last_hidden_state.shape == (1, 24, 32)


def test_loading_is_silent(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = save_teacher()
    capfd.readouterr()  # what saving said
    load(directory)
    assert "".join(capfd.readouterr()) == ""


class Malicious:
    """What an attacker pickles: loading it creates a file."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.evidence,)


def test_a_pickle_with_code_is_refused_without_running_it(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher, tmp_path: Path
) -> None:
    directory = save_teacher()
    (directory / "model.safetensors").unlink()
    evidence = tmp_path / "evidence"
    torch.save({"embeddings.weight": Malicious(evidence)}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle that holds more than tensors"):
        load(directory, task="feature-extraction")
    assert not evidence.exists()
    # The payload does work where nobody looks: otherwise the line above would prove nothing.
    pickle.loads(pickle.dumps(Malicious(evidence)))
    assert evidence.exists()


def test_code_in_the_checkpoint_runs_only_when_asked(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher, tmp_path: Path
) -> None:
    directory = save_teacher()
    evidence = tmp_path / "evidence"
    (directory / "own_model.py").write_text(
        f"from pathlib import Path\nPath({str(evidence)!r}).touch()\n"
        "from transformers import BertModel\nclass OwnModel(BertModel): pass\n"
    )
    change_config(directory, auto_map={"AutoModel": "own_model.OwnModel"})
    with pytest.raises(
        UserError, match=r"^spec.teacher.trustRemoteCode: .*config.json asks to run Python code"
    ):
        load(directory, task="feature-extraction")
    assert not evidence.exists()
    teacher = load(directory, task="feature-extraction", trust_remote_code=True)
    assert type(teacher.model).__name__ == "OwnModel"
    assert evidence.exists()


def test_tasks_of_later_releases_are_refused(load: Callable[..., LoadedTeacher], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^spec.teacher.task: fill-mask is not executed in this release; use feature-"
    ):
        load(tmp_path, task="fill-mask")


def save_decoder(save_teacher: SaveTeacher, **config: object) -> Path:
    """A tiny Llama with the tokenizer of the tiny BERT."""
    directory = save_teacher("decoder")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    settings = {"vocab_size": 12, "max_position_embeddings": 40, "tie_word_embeddings": True, **sizes}
    LlamaForCausalLM(LlamaConfig(**{**settings, **config})).save_pretrained(directory)
    return directory


def test_a_decoder_loads_with_its_tied_head(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    teacher = load(save_decoder(save_teacher), task="text-generation", labels=None)
    assert type(teacher.model).__name__ == "LlamaForCausalLM"
    assert teacher.model.lm_head.weight is teacher.model.model.embed_tokens.weight
    assert teacher.tokenizer.model_max_length == 40
    assert "token_type_ids" not in teacher.tokenizer.model_input_names
    assert teacher.labels is None


def test_a_tokenizer_larger_than_a_decoders_embedding_is_refused(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_decoder(save_teacher, vocab_size=9)
    with pytest.raises(UserError, match=r"has 10 tokens, the model embeds 9"):
        load(directory, task="text-generation", labels=None)


def test_an_encoder_does_not_generate_text(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    with pytest.raises(UserError, match=r"text-generation is not done by encoders such as bert"):
        load(save_teacher(), task="text-generation", labels=None)


@pytest.mark.parametrize(
    ("config", "labels", "message"),
    [
        (
            {"num_labels": 3},
            SENTIMENT,
            r"^spec.data.labels: the data has 2 classes \['negative', 'positive'\], but the head .* has 3 "
            r"classes",
        ),
        (
            {"num_labels": 2},
            LabelSpace(regression=True),
            r"the data has one number to predict, but the head .* has 2",
        ),
        ({"num_labels": 1}, SENTIMENT, r"but the head of the teacher in .* has one number to predict"),
        (
            {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}},
            SENTIMENT,
            r"^spec.data.labels: \['negative', 'positive'\] is not the order of the teacher's head, "
            r"\['positive', 'neg",
        ),
        (
            {"num_labels": 2, "problem_type": "multi_label_classification"},
            SENTIMENT,
            r"^spec.teacher.model: the head in .* predicts several labels per text",
        ),
    ],
)
def test_a_head_that_does_not_fit_the_data_is_refused(
    config: dict[str, Any],
    labels: LabelSpace,
    message: str,
    load: Callable[..., LoadedTeacher],
    save_classifier: SaveTeacher,
) -> None:
    with pytest.raises(UserError, match=message):
        load(save_classifier(**config), labels=labels)


def test_a_new_head_needs_labels(load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher) -> None:
    with pytest.raises(
        UserError, match=r"^spec.data.labels: .* has no classification head and nothing says which"
    ):
        load(save_teacher(), labels=None)


def drop_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def drop_one_matrix(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["encoder.layer.1.intermediate.dense.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def truncate_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def scramble_pickle(directory: Path) -> None:
    drop_weights(directory)
    (directory / "pytorch_model.bin").write_bytes(b"not a pickle")


def lose_a_shard(directory: Path) -> None:
    drop_weights(directory)
    index = {"weight_map": {"embeddings.word_embeddings.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_elsewhere(directory: Path) -> None:
    drop_weights(directory)
    index = {"weight_map": {"embeddings.word_embeddings.weight": "../vocab.txt"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def add_tokens(directory: Path) -> None:
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"].update({f"word{index}": 10 + index for index in range(20)})
    file.write_text(json.dumps(content))


def drop_tokenizer(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.write_text("broken")


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (
        drop_weights,
        r"has neither model.safetensors nor pytorch_model.bin; save the teacher with save_pretrained",
    ),
    (
        drop_one_matrix,
        r"lacks 1 weights of BertModel \(encoder.layer.1.intermediate.dense.weight\); give the compl",
    ),
    (truncate_weights, r"the weights in .* cannot be loaded \(.*\); they are damaged"),
    (scramble_pickle, r"the weights in .* cannot be loaded \(.*\); they are damaged"),
    (lose_a_shard, r"names the shard 'model-00001-of-00002.safetensors', which is not in"),
    (shard_elsewhere, r"names the shard '../vocab.txt', which is not in"),
    (add_tokens, r"the tokenizer in .* has 30 tokens, the model embeds 12; they do not belong together"),
    (drop_tokenizer, r"tokenizer.* is not valid JSON"),
    (
        lambda path: (path / "config.json").write_text("{"),
        r"config.json is not valid JSON \(.*\); save the teacher",
    ),
    (lambda path: (path / "config.json").write_text("[]"), r"config.json holds no JSON object"),
    (
        lambda path: (path / "adapter_config.json").write_text("{}"),
        r"holds an adapter, not a whole model; merge it",
    ),
    (
        lambda path: change_config(path, model_type="unheard-of"),
        r"config.json does not describe a model that trans",
    ),
    (
        lambda path: change_config(path, hidden_size=64),
        r"weights in .* have other shapes than its config.json says",
    ),
    (
        lambda path: change_config(path, quantization_config={"bits": 4}),
        r"is quantized already; give the checkpoint",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_a_checkpoint_that_cannot_be_used_is_refused_with_the_reason(
    damage: Callable[[Path], object],
    message: str,
    load: Callable[..., LoadedTeacher],
    save_teacher: SaveTeacher,
) -> None:
    directory = save_teacher()
    damage(directory)
    with pytest.raises(UserError, match=f"^spec.teacher.model: .*{message}"):
        load(directory, task="feature-extraction", labels=None)


def test_weights_that_only_their_owner_may_read_are_named(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_teacher()
    monkeypatch.setattr("os.access", lambda file, _mode: "safetensors" not in str(file))  # root may read all
    with pytest.raises(UserError, match=r"model.safetensors may not be read by the trainer, which is user"):
        load(directory, task="feature-extraction", labels=None)


def test_encoder_decoder_models_do_neither_task(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher()
    T5Config(vocab_size=12, d_model=32, num_layers=1).save_pretrained(directory)
    message = "^spec.teacher.task: feature-extraction is not done by encoder-decoder models such as t5"
    with pytest.raises(UserError, match=message):
        load(directory, task="feature-extraction")


def test_a_configuration_that_promises_a_head_must_have_its_weights(
    load: Callable[..., LoadedTeacher], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher()
    change_config(directory, architectures=["BertForSequenceClassification"])
    with pytest.raises(
        UserError, match=r"lacks 2 weights of BertForSequenceClassification \(classifier.bias"
    ):
        load(directory)


def test_the_real_encoder_loads(load: Callable[..., LoadedTeacher], minilm_dir: Path) -> None:
    teacher = load(minilm_dir, task="feature-extraction", labels=None)
    assert teacher.model.config.num_hidden_layers == 6
    assert teacher.tokenizer.model_max_length == 512

"""A decoder from the manifest to a family that writes, by the command line alone: running text in, likelihood out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tiny import Case, Ran

from ireko_trainer.serving import verify_bundle

NAME, TARGET, MEBIBYTE = "writer", "small", 1024 * 1024
WORDS = [f"w{number}" for number in range(30)]
MISTAKEN = 0.1
"""Share of words that do not follow their predecessor's number: no model is perfect."""
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content + ' ' }}{% endfor %}"


def specification() -> dict[str, Any]:
    """Decoder-only MLFS with a teacher that learns from text, and quantization, for one device."""
    return {
        "teacher": {"model": "teacher", "task": "text-generation"},
        "data": {
            "train": {"uri": "train.txt", "maxLength": 32},
            "validation": {"uri": "validation.jsonl", "textColumns": ["messages"], "maxLength": 32},
        },
        "pipeline": {
            "mlfs": {
                "batchSize": 8,
                "precision": "float32",
                "searchSpace": {"hidden": [1, 0.5], "intermediate": [1, 0.5], "layers": [1, 0.67]},
                "stages": {
                    "teacher": {"method": "Full", "steps": 40, "learningRate": 3e-3},
                    "widths": {"steps": 15, "learningRate": 1e-2},
                    "depths": {"steps": 15, "learningRate": 1e-2},
                },
                "recovery": {"steps": 10},
            },
            "quantization": {"method": "RTN", "importance": "LIM", "bits": [4, 8]},
        },
        "deviceTargets": [{"name": TARGET, "constraints": {"maxSizeMiB": 0.1, "minQualityRatio": 0.8}}],
        "evaluation": {"multipleChoice": [{"benchmark": "winogrande", "uri": "questions.jsonl"}]},
        "compute": {"workers": 0},
    }


def write_inputs(directory: Path) -> None:
    """An untrained decoder with key-value heads that two query heads share, and texts that count on."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = ["<s>", "</s>", *WORDS]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory / "teacher")
    words = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="</s>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(directory / "teacher")
    random_numbers = random.Random(0)
    (directory / "train.txt").write_text("\n".join(_text(random_numbers) for _ in range(300)))
    conversations = [
        {"messages": [{"role": "user", "content": _text(random_numbers)} for _ in range(2)]}
        for _ in range(20)
    ]
    (directory / "validation.jsonl").write_text("\n".join(map(json.dumps, conversations)))
    (directory / "questions.jsonl").write_text("\n".join(json.dumps(_question(first)) for first in range(30)))


def _text(random_numbers: random.Random) -> str:
    number, words = random_numbers.randrange(30), []
    for _ in range(15):
        words.append(WORDS[number])
        mistaken = random_numbers.random() < MISTAKEN
        number = random_numbers.randrange(30) if mistaken else (number + 1) % 30
    return " ".join(words)


def _question(first: int) -> dict[str, str]:
    """A sentence with a gap, and two words for it, of which one goes on with the counting."""
    words = [WORDS[(first + place) % 30] for place in range(6)]
    wrong, answer = WORDS[(first + 15) % 30], 1 + first % 2
    options = (words[3], wrong) if answer == 1 else (wrong, words[3])
    return {
        "sentence": " ".join([*words[:3], "_", *words[4:]]),
        "option1": options[0],
        "option2": options[1],
        "answer": str(answer),
    }


@pytest.fixture(scope="module")
def case(migrated_mlflow_db: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    inputs = tmp_path_factory.mktemp("language-inputs")
    write_inputs(inputs)
    made = Case.make(tmp_path_factory.mktemp("case"), inputs=inputs, database=migrated_mlflow_db)
    named = Case(directory=made.directory, workdir=made.workdir, tracking_uri=made.tracking_uri, name=NAME)
    named.write_manifest(specification())
    return named


@pytest.fixture(scope="module")
def ran(case: Case) -> Ran:
    ran = case.run()
    assert ran.exit_status == 0, ran.stderr + case.log_tail()
    return ran


def test_a_decoder_becomes_a_registered_family(case: Case, ran: Ran) -> None:
    result = ran.result
    (member,) = result["members"]

    assert result["phase"] == "Succeeded"
    assert set(member["metrics"]) == {"likelihood", "perplexity", "accuracy", "agreement", "winogrande"}
    assert result["teacher"]["metrics"]["accuracy"] > 0.6
    assert member["metrics"]["likelihood"] >= 0.8 * result["teacher"]["metrics"]["likelihood"]
    assert member["metrics"]["perplexity"] == pytest.approx(1 / member["metrics"]["likelihood"])
    tags = case.client.get_model_version_by_alias(NAME, TARGET).tags
    assert tags["selected.by"] == "likelihood"


def test_teacher_and_member_answer_questions_from_a_local_file(ran: Ran) -> None:
    (member,) = ran.result["members"]

    assert ran.result["teacher"]["metrics"]["winogrande"] > 0.9
    assert member["metrics"]["winogrande"] > 0.8


def test_its_member_is_a_quantized_decoder_within_the_limit(case: Case, ran: Ran) -> None:
    mlflow.set_tracking_uri(case.tracking_uri)
    (member,) = ran.result["members"]

    downloaded = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@{TARGET}"))

    checkpoint = verify_bundle(downloaded / "artifacts" / TARGET).directory / "checkpoint"
    assert (checkpoint / "model.safetensors").stat().st_size == member["sizeBytes"] <= 0.1 * MEBIBYTE
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["num_attention_heads"] == 2 * config["num_key_value_heads"]
    assert "quantization_config" in config
    assert (checkpoint / "generation_config.json").is_file()


def test_its_member_counts_on(case: Case, ran: Ran) -> None:
    mlflow.set_tracking_uri(case.tracking_uri)
    assert ran.result["members"]

    model = mlflow.pyfunc.load_model(f"models:/{NAME}@{TARGET}")

    answers = model.predict(["w3 w4 w5 w6", "w20 w21"], params={"max_new_tokens": 1})
    assert [answer["text"].strip() for answer in answers] == ["w7", "w22"]

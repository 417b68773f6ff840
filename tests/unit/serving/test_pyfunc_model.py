"""The shipped code takes what people send and answers in their order."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from ireko_trainer.serving import pyfunc_model as shipped
from ireko_trainer.serving import write_bundle
from ireko_trainer.serving.pyfunc_model import DamagedBundleError, Member, texts_of

TEXTS = ["the film is very very good", "bad", "what a film", "not good not bad"]


def loaded(checkpoint: Path, tokenizer: Any, directory: Path, **settings: Any) -> Member:
    bundle = write_bundle(
        checkpoint=checkpoint, tokenizer=tokenizer, directory=directory, max_length=16, **settings
    )
    member = Member()
    member.load_context(SimpleNamespace(artifacts={"bundle": str(bundle.directory)}))
    return member


@pytest.mark.parametrize(
    ("sent", "texts"),
    [
        ("a film", (["a film"], None)),
        (["a", "b"], (["a", "b"], None)),
        (("a", "b"), (["a", "b"], None)),
        ([("a", "b"), ["c", "d"]], (["a", "c"], ["b", "d"])),
        ([{"text": "a", "text_pair": "b"}], (["a"], ["b"])),
        ([{"text": "a"}], (["a"], None)),
        ({"text": ["a", "b"]}, (["a", "b"], None)),
        ({"text": "a", "text_pair": "b"}, (["a"], ["b"])),
        (np.array(["a", "b"]), (["a", "b"], None)),
        (np.array([["a", "b"]]), (["a"], ["b"])),
        (pd.Series(["a", "b"]), (["a", "b"], None)),
        (pd.DataFrame({"sentence": ["a", "b"]}), (["a", "b"], None)),
        (pd.DataFrame({"id": [1, 2], "text": ["a", "b"]}), (["a", "b"], None)),
        (pd.DataFrame({"text_pair": ["b"], "text": ["a"]}), (["a"], ["b"])),
        ([], ([], None)),
    ],
)
def test_texts_and_pairs_are_taken_in_every_shape(sent: Any, texts: Any) -> None:
    assert texts_of(sent) == texts


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (3, "send a list of strings"),
        ([1, 2], "expected a text or a pair of texts, got 1"),
        ([["a", "b", "c"]], "expected a text or a pair of texts"),
        (["a", ("b", "c")], "send one kind per call"),
        (pd.DataFrame({"x": ["a"], "y": ["b"]}), "name the one with the texts 'text'"),
        ({"sentence": ["a"]}, "name the one with the texts 'text'"),
        ({"text": ["a", "b"], "text_pair": ["c"]}, "they must be as many"),
    ],
)
def test_what_is_no_text_is_refused_with_a_sentence(sent: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        texts_of(sent)


def test_embeddings_are_mean_pooled_of_length_one_and_in_the_order_of_the_texts(
    encoder_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    member = loaded(encoder_checkpoint, tokenizer, tmp_path / "bundle", task="feature-extraction")
    model = AutoModel.from_pretrained(encoder_checkpoint, add_pooling_layer=False).eval()
    expected = []
    for text in TEXTS:
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        expected.append((mean / mean.norm()).numpy())
    vectors = member.predict(None, TEXTS, params={"batch_size": 3})
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.stack(expected), atol=1e-5)


def test_labels_come_with_their_probability(
    classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    member = loaded(
        classifier_checkpoint,
        tokenizer,
        tmp_path / "bundle",
        task="text-classification",
        labels=["negative", "positive"],
    )
    answers = member.predict(None, TEXTS)
    with torch.inference_mode():
        alone = member.model(**tokenizer(TEXTS[0], return_tensors="pt")).logits.softmax(dim=1)[0]
    assert answers[0]["label"] == ["negative", "positive"][int(alone.argmax())]
    assert answers[0]["score"] == pytest.approx(float(alone.max()), abs=1e-6)
    assert [set(answer) for answer in answers] == [{"label", "score"}] * len(TEXTS)


def test_the_second_text_of_a_pair_counts(
    classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    member = loaded(
        classifier_checkpoint,
        tokenizer,
        tmp_path / "bundle",
        task="text-classification",
        labels=["no", "yes"],
    )
    one, other = member.predict(None, [("a film", "good"), ("a film", "what is bad")])
    assert one["score"] != other["score"]


def test_regression_answers_with_a_number(regressor_checkpoint: Path, tokenizer: Any, tmp_path: Path) -> None:
    member = loaded(
        regressor_checkpoint, tokenizer, tmp_path / "bundle", task="text-classification", regression=True
    )
    (answer,) = member.predict(None, ["a film"])
    assert list(answer) == ["score"]


def test_an_encoder_refuses_pairs_and_says_what_to_send(
    encoder_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    member = loaded(encoder_checkpoint, tokenizer, tmp_path / "bundle", task="feature-extraction")
    with pytest.raises(TypeError, match="send both texts of a pair as items of their own"):
        member.predict(None, [("a", "b")])


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_no_texts_give_no_answers(
    task: str, encoder_checkpoint: Path, classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    encodes = task == "feature-extraction"
    member = loaded(
        encoder_checkpoint if encodes else classifier_checkpoint,
        tokenizer,
        tmp_path / "bundle",
        task=task,
        labels=[] if encodes else ["no", "yes"],
    )
    assert len(member.predict(None, [])) == 0


def test_a_damaged_bundle_is_not_loaded(encoder_checkpoint: Path, tokenizer: Any, tmp_path: Path) -> None:
    bundle = write_bundle(
        checkpoint=encoder_checkpoint,
        tokenizer=tokenizer,
        task="feature-extraction",
        max_length=16,
        directory=tmp_path / "bundle",
    )
    weights = bundle.directory / "checkpoint" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedBundleError, match="is damaged"):
        Member().load_context(SimpleNamespace(artifacts={"bundle": str(bundle.directory)}))


def test_the_shipped_file_imports_only_what_its_requirements_bring() -> None:
    tree = ast.parse(Path(shipped.__file__).read_text())
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules.add(str(node.module))
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    imported = {module.split(".")[0] for module in modules}
    assert imported - sys.stdlib_module_names == {"mlflow", "numpy", "torch", "transformers"}


@pytest.fixture
def writer(decoder_checkpoint: Path, writer_tokenizer: Any, tmp_path: Path) -> Member:
    return loaded(decoder_checkpoint, writer_tokenizer, tmp_path / "bundle", task="text-generation")


def test_a_decoder_goes_on_with_the_most_likely_tokens(
    writer: Member, decoder_checkpoint: Path, writer_tokenizer: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(decoder_checkpoint)
    for text in TEXTS:
        prompt = [2, *writer_tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids = list(prompt)
        while len(ids) < len(prompt) + 5 and ids[-1] != 3:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answer = writer.predict(None, [text], {"max_new_tokens": 5})
        before, whole = (writer_tokenizer.decode(i, skip_special_tokens=True) for i in (prompt, ids))
        assert answer == [{"text": whole[len(before) :]}]


def test_prompts_of_every_length_are_continued_together_as_alone(writer: Member) -> None:
    alone = [writer.predict(None, [text], {"max_new_tokens": 6})[0] for text in TEXTS]
    assert writer.predict(None, TEXTS, {"max_new_tokens": 6, "batch_size": 3}) == alone
    assert len({answer["text"] for answer in alone}) > 1


def test_a_conversation_is_continued_as_its_template_writes_it(writer: Member) -> None:
    messages = [{"role": "user", "content": "the film"}, {"role": "user", "content": "is good"}]
    few = {"max_new_tokens": 4}
    expected = writer.predict(None, ["the film is good"], few)
    assert writer.predict(None, {"messages": messages}, few) == expected
    assert writer.predict(None, [{"messages": messages}, "bad"], few)[0] == expected[0]


def test_nothing_is_continued_too(writer: Member) -> None:
    assert len(writer.predict(None, [""], {"max_new_tokens": 3})) == 1
    assert writer.predict(None, [], {"max_new_tokens": 3}) == []


def test_an_answer_that_leaves_no_room_for_the_prompt_is_refused(writer: Member) -> None:
    with pytest.raises(ValueError, match="max_new_tokens is 16, and the model holds 16"):
        writer.predict(None, ["a film"], {"max_new_tokens": 16})

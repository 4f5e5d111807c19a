"""Encoder-decoders and beam searches on real workers, undisturbed and disturbed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import save_tokenizer
from disturbed import heal, kill, leader_pid, name_of, whole, worker_with_a_place
from seq2seq import TEXTS, VARIED, Translator, make_translator

from skynet.checkpoint.text_files import text_files
from skynet.client.generation import Generation
from skynet.errors import BadRequest
from skynet.local.cluster import LocalCluster
from skynet.tokenizer.text import Text
from tests.made_tokenizers import directory

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

LONG, SEARCHED = 400, 120
BEAMS = {"num_beams": 3, "length_penalty": 1.5}


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    directory = tmp_path_factory.mktemp("bart")
    model = make_translator("bart", {"max_position_embeddings": 1024}, directory)
    save_tokenizer(directory)
    return model


@pytest.fixture(scope="module")
def running(bart: Translator) -> Iterator[LocalCluster]:
    """2 stages x 2 shards that take any place, a spare, two orchestrators."""
    with LocalCluster(
        bart.path, 2, 2, "float32", num_slots=12, elastic=True, spares=1, orchestrators=2
    ) as cluster:
        whole(cluster)
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(running: LocalCluster) -> list[list[int]]:
    return [generation.get(timeout=90).token_ids for generation in ask(running)]


def ask(cluster: LocalCluster) -> list[Generation]:
    """Long answers, samples of one prompt, and searches, which share steps."""
    long = [cluster.submit_prompt(text, max_tokens=LONG) for text in TEXTS[:2]]
    samples = cluster.submit_prompt(TEXTS[2], n=2, temperature=1.0, seed=5, max_tokens=LONG)
    searched = [cluster.submit_prompt(t, max_tokens=SEARCHED, **BEAMS) for t in TEXTS[3:]]
    return [*long, *samples, *searched]


def test_answers_are_those_of_transformers(running: LocalCluster, bart: Translator) -> None:
    # Given texts, each to be answered by the likeliest tokens and by a search
    options = [VARIED, VARIED | BEAMS]
    # When all are asked for at once
    asked = [
        (text, fields, running.submit_prompt(text, max_tokens=20, **fields))
        for text in TEXTS
        for fields in options
    ]
    # Then they are those of Transformers
    for text, fields, generation in asked:
        completion = generation.get(timeout=60)
        assert completion.token_ids == bart.answer(text, max_new_tokens=20, **fields)
        assert completion.prompt_tokens == len(text)
        assert len(completion.beams) == fields.get("num_beams", 0)
        # And a stream that is read afterwards has the same tokens
        assert [token.id for token in generation.tokens(timeout=10)] == completion.token_ids


def test_a_shard_dies_while_texts_are_read_and_answered(
    running: LocalCluster, undisturbed: list[list[int]]
) -> None:
    # Given answers and searches under way
    generations = ask(running)
    next(generations[0].tokens(timeout=60))
    # When a shard's worker is killed
    kill(running, worker_with_a_place(running))
    # Then all end as they do when nothing happens
    assert [generation.get(timeout=90).token_ids for generation in generations] == undisturbed
    heal(running)


def test_the_orchestrator_dies_in_the_middle_of_a_search(
    running: LocalCluster, undisturbed: list[list[int]]
) -> None:
    # Given answers and searches under way
    generations = ask(running)
    next(generations[0].tokens(timeout=60))
    # When the leading orchestrator is killed
    kill(running, name_of(running, leader_pid(running)))
    # Then the search continues on the other one, each token once
    assert [generation.get(timeout=90).token_ids for generation in generations] == undisturbed
    for generation, expected in zip(generations, undisturbed, strict=True):
        tokens = list(generation.tokens(timeout=10))
        assert [token.id for token in tokens if token.index >= 0] == expected
    heal(running)


def test_invalid_requests_are_refused(running: LocalCluster) -> None:
    # Given requests that do not fit / When they are submitted / Then each error names why
    with pytest.raises(BadRequest, match="num_beams 13: each takes a slot, and the cluster has 12"):
        running.submit_prompt([1], num_beams=13)
    with pytest.raises(BadRequest, match="has 1025 tokens, the cluster's encoder takes 1024"):
        running.submit_prompt([1] * 1025)
    with pytest.raises(BadRequest, match="n 2 with num_beams 2"):
        running.submit_prompt([1], n=2, num_beams=2)
    with pytest.raises(BadRequest, match=r"target_language 'de_DE' \(--to\): bart.* has no"):
        running.submit_prompt("\u4e05", target_language="de_DE")
    with pytest.raises(BadRequest, match=r"source_language 'de_DE' \(--from\): bart.* has no"):
        running.submit_prompt([1], source_language="de_DE")


def test_languages_are_named_by_their_codes(tmp_path: Path) -> None:
    # Given an mBART with a tokenizer of languages, and what Transformers answers in one of them
    files = directory(tmp_path / "tokenizer", "mbart50", {})
    text = Text(text_files(files))
    size = max(map(text.languages.id_of, text.languages.codes)) + 2  # the mask token is the last
    model = make_translator("mbart", {"vocab_size": size}, tmp_path)
    for name in ("sentencepiece.bpe.model", "tokenizer_config.json"):
        shutil.copy(files / name, tmp_path / name)
    german, english = text.languages.id_of("de_DE"), text.languages.id_of("en_XX")
    ids = [english, *text.encode("the cat and the fox")[1:]]
    expected = model.answer(ids, max_new_tokens=9, forced_bos_token_id=german, **VARIED)
    # When a text is asked for with their codes
    with LocalCluster(tmp_path, 1, 2, "float32") as cluster:
        completion = cluster.submit_prompt(
            "the cat and the fox",
            source_language="en_XX",
            target_language="de_DE",
            max_tokens=9,
            **VARIED,
        ).get(timeout=60)
        # Then the prompt is said to be in the one, and the answer is in the other
        assert completion.token_ids == expected
        assert completion.token_ids[0] == german
        assert completion.text == text.decode(expected)
        # And an unknown code is refused with those there are
        with pytest.raises(BadRequest, match="target_language 'xx': none of af_ZA, ar_AR"):
            cluster.submit_prompt("the cat", target_language="xx")

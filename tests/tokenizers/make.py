"""Makes the directories beside this file: tiny tokenizers, laid out as on the hub, and what
Transformers does with them on SentencePiece itself.

Needs more than the tests do: pip install transformers sentencepiece protobuf, then
`python tests/tokenizers/make.py`. The tests read the files, and need none of the three.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import AutoTokenizer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

HERE = Path(__file__).parent
ENGLISH = """the quick brown fox jumps over the lazy dog
a small cat sat on the mat and looked at the moon
Hello world, how are you today? I am fine, thank you!
numbers are 1, 2, 10, 100, 1000, 10000 and more...
it is not what it was, and that is that; isn't it?
translate English to German: The house is wonderful.
café, naïve and über are words with accents in them
"""
GERMAN = """der schnelle braune Fuchs springt über den faulen Hund
eine kleine Katze saß auf der Matte und sah den Mond an
Hallo Welt, wie geht es dir heute? Mir geht es gut, danke!
Zahlen sind 1, 2, 10, 100, 1000, 10000 und mehr...
größer, schöner, früher: die Häuser am Fluss
"""
# A hundred bytes of rules instead of the quarter megabyte of nmt_nfkc: what is replaced, by what.
RULES = {
    "\t": " ",
    "\n": " ",
    "\u00a0": " ",
    "\u3000": " ",
    "\u200b": "",
    "\ufb01": "fi",
    "Ａ": "A",
    "！": "!",
    "…": "...",
    "e\u0301": "é",
    "u\u0308": "ü",
    "e\u0323": "ẹ",
    "e\u0323\u0302": "ệ",
}
TEXTS = [
    "Hello world, how are you today?",
    "the cat and the fox",
    "  many   spaces \t in\n between  ",
    "",
    "   ",
    "\u200b",
    "numbers 1000, 10000, 100000 and .......",
    "cafe\u0301 is cafe\u0301, u\u0308ber",
    "Vie\u0323\u0302t decomposed, and Việt",
    "\ufb01ne\u00a0\ufb01sh…\u3000Ａ！",
    "a 猫 here, 猫犬 there, 東京",
    "emoji 🙂🙃 and é à ß",
    ">>fra<< Hello world",
    ">>fra<<Hello",
    "  >>fra<< not first",
    "Hello >>fra<< world",
    ">>xyz<< unknown code",
    ">>deu_Latn<< the moon",
    "the </s> end <pad> and <unk> or <s> too",
    "▁under▁scored ▁",
    "__fr__ marks and __xx__ marks",
    "the zzz of qqq",
    "<extra_id_0> is a <mask> and a <mask_1>",
    "en_XX fr_XX tokens",
]
MARIAN = {"source_lang": "en", "target_lang": "de", "model_max_length": 512}


def main() -> None:
    # A model keeps the name of its rules: one without a directory.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        rules = Path("rules.tsv")
        rules.write_text("".join(f"{_hex(old)}\t{_hex(new)}\n" for old, new in RULES.items()))
        both = ENGLISH + GERMAN
        source = train(ENGLISH, rules, vocab_size=110)
        target = train(GERMAN, rules, vocab_size=100)
        bpe = train(both, rules, vocab_size=170, model_type="bpe")
        unigram = train(both, rules, vocab_size=150)
        t5 = train(both, rules, vocab_size=150, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    write_marian(source, target)
    write_m2m100(bpe)
    add = ["<mask_1>", *(f"<unk_{number}>" for number in range(2, 103))]
    pegasus = {"mask_token": "<mask_2>", "mask_token_sent": "<mask_1>", "offset": 103}
    write("t5", "t5", {"spiece.model": t5}, {"extra_ids": 100})
    write("mt5", "mt5", {"spiece.model": t5}, {"extra_ids": 0, "tokenizer_class": "T5Tokenizer"})
    write(
        "pegasus",
        "pegasus",
        {"spiece.model": t5},
        {**pegasus, "additional_special_tokens": add},
    )
    write("mbart", "mbart", {"sentencepiece.bpe.model": unigram}, {})
    write(
        "mbart50",
        "mbart",
        {"sentencepiece.bpe.model": unigram},
        {"tokenizer_class": "MBart50Tokenizer", "src_lang": "fr_XX"},
    )
    for directory in sorted(path for path in HERE.iterdir() if (path / "config.json").exists()):
        written = json.dumps(expected(directory), ensure_ascii=False)
        (directory / "expected.json").write_text(written.replace("]], [", "]],\n [") + "\n")


def train(text: str, rules: Path, **options: Any) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines() * 5),
        model_writer=written,
        normalization_rule_tsv=str(rules),
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return written.getvalue()


def write_marian(source: bytes, target: bytes) -> None:
    """vocab.json: pieces of both, less some, and pieces that neither model has."""
    source_pieces, target_pieces = (pieces(model)[3:] for model in (source, target))
    kept = [
        piece
        for number, piece in enumerate(dict.fromkeys(source_pieces + target_pieces))
        if number % 12
    ]
    more = ["猫", "▁qqq", ">>fra<<", ">>deu_Latn<<", "<pad>"]
    files = {"source.spm": source, "target.spm": target}
    tokens = ["</s>", "<unk>", *sorted(kept), *more]
    write("marian", "marian", {**files, "vocab.json": numbered(tokens)}, MARIAN)
    separate = {
        "vocab.json": numbered(["</s>", "<unk>", *source_pieces[5:], ">>fra<<", "<pad>"]),
        "target_vocab.json": numbered(["</s>", "<unk>", *target_pieces, "<pad>"]),
    }
    write("marian-separate", "marian", {**files, **separate}, {**MARIAN, "separate_vocabs": True})


def write_m2m100(model: bytes) -> None:
    kept = [piece for number, piece in enumerate(pieces(model)[3:]) if number % 12]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(kept), "猫犬"]
    codes = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    config = {"tokenizer_class": "M2M100Tokenizer", "additional_special_tokens": codes}
    files = {"sentencepiece.bpe.model": model, "vocab.json": numbered(tokens)}
    write("m2m100", "m2m_100", files, config)


def write(name: str, model_type: str, files: dict[str, bytes], config: dict[str, Any]) -> None:
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file, content in files.items():
        (directory / file).write_bytes(content)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def expected(directory: Path) -> dict[str, Any]:
    """Of texts: ids as prompts, and of Marian as what stands in an answer. Of ids: the texts."""
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    cases: dict[str, Any] = {"prompts": [[text, tokenizer(text).input_ids] for text in TEXTS]}
    marian = directory.name.startswith("marian")
    cases["inside"] = [[text, inside(tokenizer, text)] for text in TEXTS if marian]
    answers = [ids for _, ids in cases["inside" if marian else "prompts"]]
    # With two vocabularies Transformers takes ids of the source's special tokens for the target's.
    size = len(getattr(tokenizer, "target_encoder", None) or tokenizer.get_vocab()) - 10
    answers += [[(7 * start + 3 * step) % size for step in range(8)] for start in range(20)]
    cases["answers"] = [
        [tokenizer.decode(ids, skip_special_tokens=True), ids] for ids in answers if ids
    ]
    return cases


def inside(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text_target=text, add_special_tokens=False).input_ids
    return ids


def pieces(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]


def numbered(tokens: list[str]) -> bytes:
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return json.dumps(vocabulary, ensure_ascii=False).encode()


def _hex(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


if __name__ == "__main__":
    main()

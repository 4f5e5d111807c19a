"""Small tokenizers of every class that matters, in directories as on the hub, trained here."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

Fields = dict[str, Any]

ENGLISH = """the quick brown fox jumps over the lazy dog
a small cat sat on the mat and looked at the moon
Hello world, how are you today? I am fine, thank you!
numbers are 1, 2, 10, 100, 1000, 10000 and more...
it is not what it was, and that is that; isn't it? don't, they're, we've
translate English to German: The house is wonderful.
café, naïve and über are words with accents in them
for x in range(10):  return x
""".splitlines()
GERMAN = """der schnelle braune Fuchs springt über den faulen Hund
eine kleine Katze saß auf der Matte und sah den Mond an
Hallo Welt, wie geht es dir heute? Mir geht es gut, danke!
Zahlen sind 1, 2, 10, 100, 1000, 10000 und mehr...
größer, schöner, früher: die Häuser am Fluss
""".splitlines()
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
    "e\u0301": "é",
    "u\u0308": "ü",
}
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|> {{ message.content }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def directory(path: Path, kind: str, fields: Fields) -> Path:
    """The directory of a tokenizer; `fields` are those of tokenizer_config.json."""
    path.mkdir(parents=True, exist_ok=True)
    model_type, files, config = KINDS[kind]()
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (path / "tokenizer_config.json").write_text(json.dumps({**config, **fields}))
    return path


Kind = tuple[str, dict[str, bytes], Fields]  # model_type, files, tokenizer_config.json


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@cache
def sentencepiece_model(text: str = "both", **options: Any) -> bytes:
    lines = {"en": ENGLISH, "de": GERMAN, "both": ENGLISH + GERMAN}[text]
    written = io.BytesIO()
    # A model keeps the name of its rules: one without a directory.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        pairs = (f"{_hex(old)}\t{_hex(new)}\n" for old, new in RULES.items())
        Path("rules.tsv").write_text("".join(pairs))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 5),
            model_writer=written,
            minloglevel=2,
            num_threads=1,
            hard_vocab_limit=False,
            **{"normalization_rule_tsv": "rules.tsv", "vocab_size": 150, **options},
        )
    return written.getvalue()


def _hex(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def pieces_of(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]


@cache
def byte_level(*special: str, start: str | None = None) -> str:
    """A tokenizer.json of a byte-level BPE, as GPT-2's; `start` is put before every prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=[*special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(ENGLISH + GERMAN, trainer)
    if start is not None:
        around = [(start, tokenizer.token_to_id(start))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A $B", special_tokens=around
        )
    content: str = tokenizer.to_str()
    return content


def _gpt2(model_type: str = "gpt2") -> Callable[[], Kind]:
    def kind() -> Kind:
        model = json.loads(byte_level("<|endoftext|>"))["model"]
        merges = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
        return model_type, {"vocab.json": _json(model["vocab"]), "merges.txt": merges.encode()}, {}

    return kind


def _qwen2() -> Kind:
    content = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    fields = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT}
    return (
        "qwen2",
        {"tokenizer.json": content.encode()},
        {
            **fields,
            "tokenizer_class": "Qwen2Tokenizer",
        },
    )


def _llama3() -> Kind:
    """The end tokens are ordinary in tokenizer.json; the config makes them special, or does not."""
    content = byte_level("<|begin|>", "<|end|>", "<|eot|>", start="<|begin|>")
    parsed = json.loads(content)
    for token in parsed["added_tokens"][1:]:
        token["special"] = False
    return (
        "llama",
        {"tokenizer.json": _json(parsed)},
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin|>",
            "eos_token": "<|end|>",
            "chat_template": CHAT,
        },
    )


def _roberta() -> Kind:
    model = json.loads(byte_level("<s>", "<pad>", "</s>", "<unk>", "<mask>"))["model"]
    merges = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
    return "roberta", {"vocab.json": _json(model["vocab"]), "merges.txt": merges.encode()}, {}


def _llama2_model(**options: Any) -> bytes:
    return sentencepiece_model(
        model_type="bpe", vocab_size=430, byte_fallback=True, normalization_rule_tsv="",
        normalization_rule_name="identity", remove_extra_whitespaces=False, **options,
    )  # fmt: skip


def _llama2() -> Kind:
    fields = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return (
        "llama",
        {"tokenizer.model": _llama2_model()},
        {
            "tokenizer_class": "LlamaTokenizer",
            "chat_template": CHAT,
            **fields,
        },
    )


def _llama2_json() -> Kind:
    """As many fine-tuned Llamas: a tokenizer.json, whose prefix rule `legacy` changes."""
    pieces = pieces_of(_llama2_model())
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces[259:]
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    _, _, fields = _llama2()
    return "llama", {"tokenizer.json": tokenizer.to_str().encode()}, fields


def _gemma() -> Kind:
    control = {"user_defined_symbols": "<start_of_turn>,<end_of_turn>,  ,   "}
    order = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False}
    model = _llama2_model(
        **control, **order, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>"
    )
    return "gemma", {"tokenizer.model": model}, {"tokenizer_class": "GemmaTokenizer"}


T5_ORDER = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def _t5() -> Kind:
    return "t5", {"spiece.model": sentencepiece_model(**T5_ORDER)}, {"extra_ids": 100}


def _mt5() -> Kind:
    fields = {"extra_ids": 0, "tokenizer_class": "T5Tokenizer"}
    return "mt5", {"spiece.model": sentencepiece_model(**T5_ORDER)}, fields


def _pegasus() -> Kind:
    add = ["<mask_1>", *(f"<unk_{number}>" for number in range(2, 103))]
    return (
        "pegasus",
        {"spiece.model": sentencepiece_model(**T5_ORDER)},
        {
            "mask_token": "<mask_2>",
            "mask_token_sent": "<mask_1>",
            "offset": 103,
            "additional_special_tokens": add,
        },
    )


def _fairseq(model_type: str, tokenizer_class: str, **fields: Any) -> Callable[[], Kind]:
    def kind() -> Kind:
        files = {"sentencepiece.bpe.model": sentencepiece_model()}
        return model_type, files, {"tokenizer_class": tokenizer_class, **fields}

    return kind


def _nllb() -> Kind:
    """An NLLB as on the hub: a tokenizer.json whose template has an older order."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces_of(sentencepiece_model())[3:]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces[4:]
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(
        ["<s>", "<pad>", "</s>", "<unk>", "eng_Latn", "deu_Latn", "<mask>"]
    )
    code = tokenizer.token_to_id("eng_Latn")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s> eng_Latn", special_tokens=[("</s>", 2), ("eng_Latn", code)]
    )
    fields = {"tokenizer_class": "NllbTokenizer", "src_lang": "deu_Latn"}
    codes = ["eng_Latn", "deu_Latn"]
    return (
        "m2m_100",
        {"tokenizer.json": tokenizer.to_str().encode()},
        {
            **fields,
            "additional_special_tokens": codes,
        },
    )


def _word_pieces(lower: bool) -> list[str]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = WordPieceTrainer(vocab_size=250, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(ENGLISH + GERMAN, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


@cache
def _vocabulary(lower: bool) -> bytes:
    return "".join(f"{piece}\n" for piece in _word_pieces(lower)).encode()


def _bert(model_type: str = "bert") -> Callable[[], Kind]:
    return lambda: (model_type, {"vocab.txt": _vocabulary(False)}, {})


def _mpnet() -> Kind:
    """BERT's pieces with RoBERTa's special tokens."""
    names = {"[PAD]": "<pad>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}
    pieces = (names.get(piece, piece) for piece in _word_pieces(True))
    return "mpnet", {"vocab.txt": "".join(f"{piece}\n" for piece in pieces).encode()}, {}


def _bert_json() -> Kind:
    """A tokenizer.json that lower-cases, which the config may contradict."""
    pieces = {piece: number for number, piece in enumerate(_word_pieces(True))}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return (
        "bert",
        {"tokenizer.json": tokenizer.to_str().encode()},
        {"tokenizer_class": "BertTokenizer"},
    )


def _marian(separate: bool) -> Callable[[], Kind]:
    def kind() -> Kind:
        source = sentencepiece_model("en", vocab_size=110)
        target = sentencepiece_model("de", vocab_size=100)
        codes = [">>fra<<", ">>deu_Latn<<"]
        own = [piece for piece in pieces_of(source)[3:] if piece != "▁moon"]
        others = [piece for piece in pieces_of(target)[3:] if piece not in own]
        common = ["</s>", "<unk>", *own, *([] if separate else others), *codes, "qqq", "<pad>"]
        files = {"source.spm": source, "target.spm": target, "vocab.json": _numbered(common)}
        fields: Fields = {"source_lang": "en", "target_lang": "de", "model_max_length": 512}
        if separate:
            files["target_vocab.json"] = _numbered(
                ["</s>", "<unk>", *pieces_of(target)[3:], "qqq", "<pad>"]
            )
            fields["separate_vocabs"] = True
        return "marian", files, fields

    return kind


def _m2m100(**fields: Any) -> Callable[[], Kind]:
    def kind() -> Kind:
        model = sentencepiece_model(model_type="bpe", vocab_size=170)
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces_of(model)[3:]]
        files = {"sentencepiece.bpe.model": model, "vocab.json": _numbered(pieces)}
        return "m2m_100", files, {"tokenizer_class": "M2M100Tokenizer", **fields}

    return kind


def _deberta_v2() -> Kind:
    order = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]"}
    model = sentencepiece_model(**order, **pieces, unk_piece="[UNK]")
    return "deberta-v2", {"spm.model": model}, {}


def _numbered(tokens: list[str]) -> bytes:
    return _json({token: number for number, token in enumerate(tokens)})


def _characters() -> Kind:
    """A WordLevel tokenizer without any class of its own."""
    vocabulary = {chr(number): number for number in range(32, 127)} | {"[UNK]": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return (
        "llama",
        {"tokenizer.json": tokenizer.to_str().encode()},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    )


M2M100_CODES = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
ODD_CODES = [f"__{code}__" for code in ("en", "de", "fr")]
KINDS: dict[str, Callable[[], Kind]] = {
    "bert": _bert(),
    "bert-json": _bert_json,
    "characters": _characters,
    "deberta-v2": _deberta_v2,
    "distilbert": _bert("distilbert"),
    "electra": _bert("electra"),
    "codegen": _gpt2("codegen"),
    "camembert": _fairseq("camembert", "CamembertTokenizer"),
    "gemma": _gemma,
    "gpt2": _gpt2(),
    "llama2": _llama2,
    "llama2-json": _llama2_json,
    "llama3": _llama3,
    "m2m100": _m2m100(),
    "m2m100-codes": _m2m100(additional_special_tokens=M2M100_CODES, src_lang="de"),
    "m2m100-odd-codes": _m2m100(additional_special_tokens=ODD_CODES, src_lang="de"),
    "marian": _marian(separate=False),
    "marian-separate": _marian(separate=True),
    "mbart": _fairseq("mbart", "MBartTokenizer"),
    "mbart50": _fairseq("mbart", "MBart50Tokenizer", src_lang="fr_XX"),
    "mpnet": _mpnet,
    "mt5": _mt5,
    "nllb": _nllb,
    "pegasus": _pegasus,
    "qwen2": _qwen2,
    "roberta": _roberta,
    "t5": _t5,
    "xlm-roberta": _fairseq("xlm-roberta", "XLMRobertaTokenizer"),
}

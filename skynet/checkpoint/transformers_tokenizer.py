"""The tokenizer that Transformers loads from a model directory, in the form that is staged.

The only reader of published tokenizers. Never runs code of a checkpoint.
"""

from __future__ import annotations

import json
import logging
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

from skynet.errors import CheckpointError, SkynetError, UnsupportedModel
from skynet.tokenizer.languages import spoken_languages, target_languages
from skynet.tokenizer.staged_tokenizer import (
    FILE,
    SOURCE,
    TARGET,
    AddedToken,
    LanguageCodes,
    Pieces,
    StagedTokenizer,
)
from skynet.tokenizer.text import Text

CONFIG = "tokenizer_config.json"
# A directory with none of these has no tokenizer.
VOCABULARIES = (
    *("tokenizer*.json", "vocab.*", "*vocab*.txt", "tekken.json"),
    *("*.model", "*.spm", "*.tiktoken"),
)
# Classes that Transformers runs on SentencePiece, with a vocabulary beside it.
MARIAN, M2M100 = "MarianTokenizer", "M2M100Tokenizer"
TYPES = "token_type_ids"
UNLIMITED = 10**20  # Transformers' LARGE_INTEGER
# The staged form is compared with Transformers on these, and on texts of special tokens.
PROBES = (
    "The quick brown fox,  jumps over\n\n the lazy dog!",
    " the fox ran and the fox won't sleep . ",
    "größer, naïve: 東京タワー Привет عربى 🙂 ﬁ Å ①",
    "aaa bbb 1000 the\tend",
    "",
)

logger = logging.getLogger(__name__)


class _NotStaged(Exception):
    """The staged form cannot express the tokenizer; the message says why."""


def tokenizer_files(path: Path) -> dict[str, bytes]:
    """The staged files of a model directory's tokenizer.

    Empty without a tokenizer, and, with a warning, for one that the staged form cannot express,
    such as one in Python: prompts are token ids then.

    Raises:
        CheckpointError: Transformers cannot load it.
        UnsupportedModel: it is code of the checkpoint.
    """
    if not _has_tokenizer(path):
        return {}
    _check_sentencepiece(path)
    tokenizer = _load(path)
    try:
        staged, models = _staged(tokenizer)
        files = {FILE: staged.to_json(), **models}
        _compare(tokenizer, staged, Text(files))
        if staged.pairs != "none" and not _joins_alike(tokenizer, Text(files)):
            files[FILE] = staged.model_copy(update={"pairs": "none"}).to_json()
    except _NotStaged as error:
        logger.warning(
            "%s is staged without its tokenizer, a %s: %s. Its prompts must be token ids",
            path,
            type(tokenizer).__name__,
            error,
        )
        return {}
    return files


def _has_tokenizer(path: Path) -> bool:
    files = (file for pattern in VOCABULARIES for file in path.glob(pattern))
    return any(file.is_file() and file.name != CONFIG for file in files)


def _check_sentencepiece(path: Path) -> None:
    """Raise CheckpointError if a SentencePiece model ends between two of its pieces.

    A file that ends there is valid, and Transformers would load it with fewer tokens.
    """
    files = [*path.glob("*.model"), *path.glob("*.spm")]
    if not files:
        return
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    for file in files:
        content = file.read_bytes()
        try:
            model = messages.ModelProto.FromString(content)
        except DecodeError:  # another format, or an error that Transformers reports
            continue
        is_whole = model.HasField("trainer_spec") and model.HasField("normalizer_spec")
        if not content or (model.pieces and not is_whole):
            raise CheckpointError(f"{file} is truncated; download it again")


def _load(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice, such as to install more packages
            return AutoTokenizer.from_pretrained(
                str(path), trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # each tokenizer class raises other errors
        rest = "or move its files out of the directory to serve token ids only"
        if _is_remote_code(path):
            raise UnsupportedModel(
                f"{path / CONFIG}: the tokenizer is code of the checkpoint (auto_map), which is "
                "never run here; where you trust it, save the tokenizer as a tokenizer.json with "
                f"the class PreTrainedTokenizerFast, {rest}"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{_damaged(path) or path}: Transformers cannot load the tokenizer: {reason:.400}; "
            f"download its files again, {rest}"
        ) from error


def _is_remote_code(path: Path) -> bool:
    try:
        auto_map = json.loads((path / CONFIG).read_bytes()).get("auto_map", ())
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(auto_map, list) or "AutoTokenizer" in auto_map


def _damaged(path: Path) -> Path | None:
    """The first JSON file of the directory that is none; Transformers' errors do not name it."""
    for file in sorted(path.glob("*.json")):
        try:
            json.loads(file.read_bytes())
        except (OSError, ValueError):
            return file
    return None


def _staged(tokenizer: Any) -> tuple[StagedTokenizer, dict[str, bytes]]:
    """The staged form, and the SentencePiece models that belong to it by name."""
    class_name = type(tokenizer).__name__
    template, named = tokenizer.chat_template, {}
    if isinstance(template, dict):  # of several, by name
        named = {name: text for name, text in template.items() if name != "default"}
        template = template.get("default")
    # Transformers before 5.13 has none.
    response_template = getattr(tokenizer, "response_template", None)
    staged = StagedTokenizer(
        class_name=class_name,
        special_tokens=tokenizer.special_tokens_map,
        chat_template=template,
        chat_templates=named,
        response_template=json.dumps(response_template) if response_template else None,
        split_special_tokens=bool(tokenizer.split_special_tokens),
        cleans_up=bool(tokenizer.clean_up_tokenization_spaces),
        infill_token=getattr(tokenizer, "fill_token", None) or None,
        model_max_length=_limit(tokenizer.model_max_length),
    )
    form: dict[str, Any] = {}
    models: dict[str, bytes] = {}
    if class_name in (MARIAN, M2M100):
        form, models = _sentencepiece(tokenizer)
    elif getattr(tokenizer, "backend_tokenizer", None) is not None:
        form = _fast(tokenizer)
    else:
        raise _NotStaged("Transformers has no fast form of it")
    return staged.model_copy(update=form), models


def _limit(model_max_length: Any) -> int | None:
    """None for Transformers' "very large" numbers, which stand for no limit."""
    return int(model_max_length) if 0 < model_max_length < UNLIMITED else None


def _fast(tokenizer: Any) -> dict[str, Any]:
    backend = tokenizer.backend_tokenizer
    try:
        content = backend.to_str()
    except Exception as error:  # the library raises plain Exception
        raise _NotStaged(f"it has parts in Python: {error}") from error
    form: dict[str, Any] = {"backend": content, "languages": _languages(tokenizer)}
    form["pairs"] = "typed" if TYPES in tokenizer.model_input_names else "plain"
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    if type(backend.model).__name__ == "BPE" and not getattr(tokenizer, forced, False):
        form["cleans_up"] = False  # as in Transformers, whatever the setting says
    return form


def _languages(tokenizer: Any) -> LanguageCodes:
    added = {token.content: n for n, token in tokenizer.added_tokens_decoder.items()}
    mask = tokenizer("a", return_special_tokens_mask=True)
    ids, special = mask["input_ids"], mask["special_tokens_mask"]
    if 0 not in special:
        return spoken_languages(added, ids, [])
    start, stop = special.index(0), len(special) - special[::-1].index(0)
    return spoken_languages(added, ids[:start], ids[stop:])


def _sentencepiece(tokenizer: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The form of a Marian or M2M100 tokenizer, and its SentencePiece models."""
    if tokenizer.sp_model_kwargs:
        raise _NotStaged(f"its sp_model_kwargs {tokenizer.sp_model_kwargs!r} are not supported")
    is_marian = type(tokenizer).__name__ == MARIAN
    spm_files = tokenizer.spm_files if is_marian else [tokenizer.spm_file]
    names = (SOURCE, TARGET)[: len(spm_files)]
    models = {name: Path(file).read_bytes() for name, file in zip(names, spm_files, strict=True)}
    vocabulary = dict(tokenizer.encoder)
    if str(tokenizer.unk_token) not in vocabulary:
        raise CheckpointError(
            f"{tokenizer.vocab_file} lacks the unk_token {str(tokenizer.unk_token)!r}; download "
            f"it and {CONFIG} again"
        )
    text = -1  # stands for the text's tokens
    around = tokenizer.build_inputs_with_special_tokens([text])
    prefix, suffix = around[: around.index(text)], around[around.index(text) + 1 :]
    if is_marian:
        languages = target_languages(vocabulary)
    else:
        vocabulary |= tokenizer.lang_token_to_id
        languages = spoken_languages(tokenizer.lang_token_to_id, prefix, suffix)
    pieces = Pieces(
        vocabulary=vocabulary,
        target_vocabulary=tokenizer.target_encoder if _is_separate(tokenizer) else None,
        unknown=str(tokenizer.unk_token),
        added_tokens=tuple(
            AddedToken(
                content=token.content,
                id=number,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
            )
            for number, token in tokenizer.added_tokens_decoder.items()
        ),
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
        special_tokens=tuple(tokenizer.all_special_tokens),
        after_special=" " if is_marian else "",
        codes_first=is_marian,
        underline_is_space=is_marian,
    )
    return {"pieces": pieces, "languages": languages}, models


def _is_separate(tokenizer: Any) -> bool:
    """Whether a Marian tokenizer has one vocabulary for prompts and one for answers."""
    return bool(getattr(tokenizer, "separate_vocabs", False))


def _compare(tokenizer: Any, staged: StagedTokenizer, text: Text) -> None:
    """Encode and decode a few texts in both forms.

    Some classes add steps in Python to those of their backend, others may do so in a later version
    of Transformers: better no tokenizer than different token ids.

    Raises:
        _NotStaged: the forms differ.
    """
    special = [token for token in tokenizer.all_special_tokens[:50] if token != staged.infill_token]
    for probe in (*PROBES, "the".join(special), f" a {' a '.join(special)} "):
        try:
            same = text.encode(probe) == tokenizer(probe)["input_ids"]
            # A Marian model has one vocabulary for source texts and another for answers.
            name = "text_target" if staged.class_name == MARIAN else "text"
            ids = tokenizer(**{name: probe}, add_special_tokens=False)["input_ids"]
            same = same and text.encode_inside(probe) == ids
            same = same and text.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
        except SkynetError:
            raise
        except Exception as error:  # a class that takes more than a text
            raise _NotStaged(f"Transformers refuses {probe!r}: {error}") from error
        if not same:
            raise _NotStaged(f"it splits or joins {probe!r} in Python code")


def _joins_alike(tokenizer: Any, text: Text) -> bool:
    """Whether both forms join two texts to the same tokens and types."""
    for pair in pairwise(PROBES[:-1]):
        try:
            expected = tokenizer(*pair)
            ids, types = text.encode_pair(pair)
        except Exception:  # a class that takes one text only
            return False
        if (expected["input_ids"], expected.get(TYPES, [])) != (ids, types):
            return False
    return True

"""Language codes of multilingual tokenizers, and their position in prompts.

Transformers sets the language code of prompts from `src_lang` when it loads a tokenizer; a
tokenizer.json may hold an older order. This module does the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import processors

from skynet.errors import UnsupportedModel
from skynet.tokenizer.tokenizer_config import TokenizerConfig


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MBART = _words(
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT "
    "lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
MBART50 = (
    *MBART,
    *_words(
        "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF "
        "pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
    ),
)
M2M100 = _words(
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu "
    "ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms "
    "my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur "
    "uz vi wo xh yi yo zh zu"
)
WMT21 = ("en", "ha", "is", "ja", "cs", "ru", "zh", "de")


@dataclass(frozen=True)
class Frame:
    """The language code in a family's prompts."""

    default: str
    first: bool  # before the text; False: after the end token
    token: str = "{}"

    def around(self, config: TokenizerConfig) -> tuple[list[str], list[str]]:
        """Tokens before and after a prompt in the tokenizer's default language."""
        source = config.values.get("src_lang")
        code = self.token.format(source if isinstance(source, str) and source else self.default)
        end = config.special_tokens.get("eos_token", "</s>")
        first = self.first and not config.values.get("legacy_behaviour")  # NLLB's
        return ([code], [end]) if first else ([], [end, code])


FRAMES = {
    "M2M100Tokenizer": Frame("en", first=True, token="__{}__"),
    "MBart50Tokenizer": Frame("en_XX", first=True),
    "MBartTokenizer": Frame("en_XX", first=False),
    "NllbTokenizer": Frame("eng_Latn", first=True),
}


def template(
    before: list[str], after: list[str], token_to_id: Callable[[str], int | None]
) -> processors.TemplateProcessing:
    """A post-processor that adds these tokens to a prompt.

    Raises:
        UnsupportedModel: a token is not in the vocabulary.
    """
    special = []
    for token in dict.fromkeys([*before, *after]):
        number = token_to_id(token)
        if number is None:
            raise UnsupportedModel(f"prompts need the token {token!r}, which its vocabulary lacks")
        special.append((token, number))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=special
    )


def with_frame(content: bytes, config: TokenizerConfig) -> bytes:
    """The tokenizer.json with the language code where Transformers puts it.

    Unchanged if it is there, for families without languages, and without the codes' tokens.
    """
    frame = FRAMES.get(config.class_name)
    if frame is None:
        return content
    try:
        tokenizer: dict[str, Any] = json.loads(content)
        ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
        before, after = frame.around(config)
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ):  # `Text` reports the error
        return content
    if not {*before, *after} <= ids.keys():
        return content
    wanted = json.loads(template(before, after, ids.get).__getstate__())
    if tokenizer.get("post_processor") == wanted:
        return content
    return json.dumps({**tokenizer, "post_processor": wanted}, ensure_ascii=False).encode()

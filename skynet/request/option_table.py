"""Every option of a request, one row each. Standard library only: the command line needs it.

The rows drive the checks (`skynet/request/options.py`), the defaults that a generation_config.json
may set (`skynet/request/generation_config.py`), the flags of the command line
(`skynet/cli/options.py`) and the documented table (`python -m tests.options_table`). A new option
is a row here, a field of `skynet.request.record.Options`, and its maths in the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

MAX_INTEGER = 2**31 - 1
DEFAULT_PRIORITY = 5  # batches run at 0: after requests that somebody waits for


def decimal(number: float) -> str:
    """A number without rounding it: 0.01, 600, 1234567."""
    return f"{number:.15g}"


class Kind(Enum):
    """The type of an option's value."""

    INTEGER = auto()
    NUMBER = auto()
    FLAG = auto()
    CHOICE = auto()
    TOKEN_ID = auto()
    TOKEN_IDS = auto()
    TOKEN_ID_OR_IDS = auto()
    TOKEN_ID_LISTS = auto()
    TOKEN_BIASES = auto()
    TEXT = auto()
    TEXTS = auto()
    GRAMMAR = auto()


@dataclass(frozen=True)
class Option:
    """One option.

    help: a sentence, for the command line and the documents.
    default_text: describes a default that is not a constant.
    minimum, maximum: of an integer or a number, both included; of each bias.
    above_minimum: the minimum itself is not included.
    or_zero: a number may also be 0, below its minimum.
    choices: of a choice.
    max_items, max_item_length: of a list; an item's length counts tokens or characters.
    max_length: of a text, in characters; 0: no limit.
    config_field: the field of generation_config.json that sets the model's default.
    samples_only: that field applies to requests that sample.
    beams_only: without effect unless the request is a beam search.
    recorded: the request's record (`Options`) has a field of this name.
    flag: on the command line; none: only Python sets it.
    metavar: stands for the value in the command line's help.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    default_text: str = ""
    minimum: float = 0
    maximum: float = MAX_INTEGER
    above_minimum: bool = False
    or_zero: bool = False
    choices: tuple[Any, ...] = ()
    max_items: int = 0
    max_item_length: int = 0
    max_length: int = 0
    config_field: str = ""
    samples_only: bool = False
    beams_only: bool = False
    recorded: bool = True
    flag: str = ""
    metavar: str | None = None

    @property
    def shown_default(self) -> str:
        """The default in words; Markdown."""
        if self.default_text:
            return self.default_text
        if self.default is None or self.default == ():
            return "none"
        return decimal(self.default) if self.kind is Kind.NUMBER else str(self.default)

    @property
    def values(self) -> str:
        """The accepted values in words."""
        match self.kind:
            case Kind.INTEGER | Kind.NUMBER:
                return self._range()
            case Kind.FLAG:
                return "True or False"
            case Kind.CHOICE:
                *first, last = (repr(choice) for choice in self.choices)
                return f"{', '.join(first)} or {last}"
            case Kind.TOKEN_ID:
                return "a token id"
            case Kind.TOKEN_IDS:
                return f"up to {self.max_items} token ids"
            case Kind.TOKEN_ID_OR_IDS:
                return f"a token id, or up to {self.max_items}"
            case Kind.TOKEN_ID_LISTS:
                return f"up to {self.max_items} lists of 1 to {self.max_item_length} token ids"
            case Kind.TOKEN_BIASES:
                return (
                    f"a mapping of up to {self.max_items} token ids to numbers from "
                    f"{decimal(self.minimum)} to {decimal(self.maximum)}"
                )
            case Kind.TEXT:
                return (
                    f"a text of 1 to {self.max_length} characters" if self.max_length else "a text"
                )
            case Kind.TEXTS:
                return f"a text, or up to {self.max_items}"
            case Kind.GRAMMAR:
                return "a mapping with one of json, json_object, regex, choice or grammar"

    def _range(self) -> str:
        low = f"{'more than ' if self.above_minimum else ''}{decimal(self.minimum)}"
        if self.maximum >= MAX_INTEGER:
            return low if self.above_minimum else f"{low} or more"
        joint = ", at most " if self.above_minimum else " to "
        return f"{'0, or ' if self.or_zero else ''}{low}{joint}{decimal(self.maximum)}"


OPTIONS = (
    Option(
        "max_tokens",
        Kind.INTEGER,
        128,
        "Longest answer, in tokens; -1: to the end of the context; 0: only with `prompt_logprobs`.",
        minimum=-1,
        flag="--max-tokens",
    ),
    Option(
        "min_new_tokens",
        Kind.INTEGER,
        0,
        "Shortest answer, in tokens; no end token comes before.",
        config_field="min_new_tokens",
        flag="--min-new-tokens",
    ),
    Option(
        "temperature",
        Kind.NUMBER,
        0.0,
        "Sampling temperature; 0 takes the likeliest token.",
        default_text="0",
        minimum=1e-3,  # below, logits overflow
        maximum=100,
        or_zero=True,
        config_field="temperature",
        samples_only=True,
        flag="--temperature",
    ),
    Option(
        "do_sample",
        Kind.FLAG,
        None,
        "Sample, at the model's default temperature or 1 unless `temperature` is given.",
        default_text="`temperature` > 0",
        recorded=False,
        flag="--sample",
    ),
    Option(
        "top_k",
        Kind.INTEGER,
        0,
        "Sample from the k likeliest tokens; 0 is off.",
        config_field="top_k",
        samples_only=True,
        flag="--top-k",
    ),
    Option(
        "top_p",
        Kind.NUMBER,
        1.0,
        "Sample from the likeliest tokens whose probabilities add up to this; 1 is off.",
        maximum=1,
        above_minimum=True,
        config_field="top_p",
        samples_only=True,
        flag="--top-p",
    ),
    Option(
        "min_p",
        Kind.NUMBER,
        0.0,
        "Sample from tokens at least this fraction as likely as the likeliest; 0 is off.",
        maximum=1,
        config_field="min_p",
        samples_only=True,
        flag="--min-p",
    ),
    Option(
        "seed",
        Kind.INTEGER,
        None,
        "Seed of sampling: the same seed gives the same tokens on any cluster.",
        default_text="random",
        maximum=2**64 - 1,
        flag="--seed",
    ),
    Option(
        "logprobs",
        Kind.INTEGER,
        None,
        "Report each token's log-probability, and those of this many likeliest tokens.",
        default_text="off",
        maximum=20,
        flag="--logprobs",
    ),
    Option(
        "prompt_logprobs",
        Kind.INTEGER,
        None,
        "Report the log-probability of each token of the prompt, and those of this many likeliest "
        "tokens in its place.",
        default_text="off",
        maximum=20,
        flag="--prompt-logprobs",
    ),
    Option(
        "stop",
        Kind.TEXTS,
        (),
        "End the answer before this text.",
        max_items=16,
        max_item_length=256,
        config_field="stop_strings",
        flag="--stop",
    ),
    Option(
        "stop_token_ids",
        Kind.TOKEN_IDS,
        (),
        "End the answer with one of these tokens, as with an end token; also with `ignore_eos`.",
        max_items=64,
    ),
    Option(
        "include_stop_str_in_output",
        Kind.FLAG,
        False,
        "Leave the text that ended the answer, of `stop` or `stop_token_ids`, in its text.",
    ),
    Option(
        "skip_special_tokens",
        Kind.FLAG,
        True,
        "Leave special tokens, for example the end token, out of the text.",
    ),
    Option(
        "ignore_eos",
        Kind.FLAG,
        False,
        "Continue after end tokens, up to `max_tokens`.",
    ),
    Option(
        "repetition_penalty",
        Kind.NUMBER,
        1.0,
        "Divide positive logits of tokens in prompt or answer by this, multiply negative ones; "
        "1 is off.",
        minimum=0.01,
        maximum=100,
        config_field="repetition_penalty",
        flag="--repetition-penalty",
    ),
    Option(
        "frequency_penalty",
        Kind.NUMBER,
        0.0,
        "Subtract this from a token's logit for each time that the answer has the token.",
        minimum=-2,
        maximum=2,
        flag="--frequency-penalty",
    ),
    Option(
        "presence_penalty",
        Kind.NUMBER,
        0.0,
        "Subtract this from the logits of tokens that the answer has.",
        minimum=-2,
        maximum=2,
        flag="--presence-penalty",
    ),
    Option(
        "logit_bias",
        Kind.TOKEN_BIASES,
        (),
        "Add these to the logits of tokens, before penalties.",
        minimum=-100,
        maximum=100,
        max_items=1024,
        flag="--logit-bias",
        metavar="ID=BIAS",
    ),
    Option(
        "no_repeat_ngram_size",
        Kind.INTEGER,
        0,
        "Never repeat a sequence of this many tokens; 0 is off.",
        config_field="no_repeat_ngram_size",
        flag="--no-repeat-ngram-size",
    ),
    Option(
        "bad_words",
        Kind.TEXTS,
        (),
        "Never generate this text, as the tokenizer splits it.",
        max_items=1024,
        max_item_length=256,
        recorded=False,
        flag="--bad-word",
    ),
    Option(
        "bad_words_ids",
        Kind.TOKEN_ID_LISTS,
        (),
        "Never generate these sequences of token ids.",
        max_items=2048,
        max_item_length=64,
        config_field="bad_words_ids",
    ),
    Option(
        "suppress_tokens",
        Kind.TOKEN_IDS,
        (),
        "Never generate these tokens.",
        max_items=4096,
        config_field="suppress_tokens",
    ),
    Option(
        "begin_suppress_tokens",
        Kind.TOKEN_IDS,
        (),
        "Never generate these tokens first.",
        max_items=4096,
        config_field="begin_suppress_tokens",
    ),
    Option(
        "forced_bos_token_id",
        Kind.TOKEN_ID,
        None,
        "First token of the answer, if the decoder's prompt is a single token.",
        config_field="forced_bos_token_id",
    ),
    Option(
        "forced_eos_token_id",
        Kind.TOKEN_ID_OR_IDS,
        (),
        "Last token of an answer of `max_tokens`; of several, the likeliest.",
        max_items=4096,
        config_field="forced_eos_token_id",
    ),
    Option(
        "structured_outputs",
        Kind.GRAMMAR,
        None,
        "Follow a JSON schema, regular expression, choice or grammar; see "
        "[Structured output](#structured-output).",
    ),
    Option(
        "num_beams",
        Kind.INTEGER,
        1,
        "Beams of a beam search, a slot each; 1 is off. The answer comes at its end.",
        minimum=1,
        maximum=64,
        config_field="num_beams",
        flag="--num-beams",
    ),
    Option(
        "length_penalty",
        Kind.NUMBER,
        1.0,
        "Beam search: divide scores by length to this power; more than 0 favours long answers.",
        minimum=-10,
        maximum=10,
        config_field="length_penalty",
        beams_only=True,
        flag="--length-penalty",
    ),
    Option(
        "early_stopping",
        Kind.CHOICE,
        False,
        "Beam search: end with as many answers as beams (true), when better ones are unlikely "
        "(false), or when none can be better (never).",
        choices=(True, False, "never"),
        config_field="early_stopping",
        beams_only=True,
        flag="--early-stopping",
    ),
    Option(
        "renormalize_logits",
        Kind.FLAG,
        False,
        "Beam search: normalise probabilities again after bans and penalties.",
        config_field="renormalize_logits",
        beams_only=True,
    ),
    Option(
        "decoder_start_token_id",
        Kind.TOKEN_ID,
        None,
        "Encoder-decoder: the token before the answer.",
        default_text="the model's",
        config_field="decoder_start_token_id",
    ),
    Option(
        "source_language",
        Kind.TEXT,
        None,
        "Translation: language of the prompt, a code of the model's tokenizer.",
        default_text="the tokenizer's",
        recorded=False,
        flag="--from",
        metavar="CODE",
    ),
    Option(
        "target_language",
        Kind.TEXT,
        None,
        "Translation: language of the answer, a code of the model's tokenizer.",
        default_text="the model's",
        recorded=False,
        flag="--to",
        metavar="CODE",
    ),
    Option(
        "cache_salt",
        Kind.TEXT,
        None,
        "Use cached prompts of requests with the same salt only, and leave the prompt to those.",
        max_length=256,
        flag="--cache-salt",
    ),
)
# Arguments of `submit_prompt` beside the options: no model sets or records them.
ARGUMENTS = (
    Option(
        "n",
        Kind.INTEGER,
        None,
        "Number of answers; in Python a list of as many generations.",
        default_text="one",
        minimum=1,
        maximum=16,
        recorded=False,
        flag="--n",
    ),
    Option(
        "priority",
        Kind.INTEGER,
        DEFAULT_PRIORITY,
        "Waiting requests of a higher priority run first.",
        maximum=9,
        recorded=False,
        flag="--priority",
    ),
    Option(
        "timeout",
        Kind.NUMBER,
        None,
        "Seconds until the request fails with RequestTimeout.",
        default_text="`SKYNET_REQUEST_TIMEOUT_S`",
        maximum=1e9,
        above_minimum=True,
        recorded=False,
        flag="--timeout",
    ),
)
BY_NAME = {option.name: option for option in OPTIONS + ARGUMENTS}
KNOWN = tuple(option.name for option in OPTIONS)

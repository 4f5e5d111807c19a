"""Answers of each family, in any pieces: content, reasoning and tool calls."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from transformers.utils.chat_parsing import parse_response

from skynet.errors import BadRequest, CheckpointError
from skynet.gateway.parsing import families
from skynet.gateway.parsing.deltas import Delta
from skynet.gateway.parsing.response_format import ResponseFormat, split_reasoning

HARMONY = {
    "start_anchor": "<|start|>assistant",
    "fields": {
        "reasoning_content": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
        "tool_calls": {
            "open_pattern": (
                r"<\|channel\|>commentary to=functions\.(?P<name>[\w.-]+)[^<]*"
                r"(?:<\|constrain\|>json)?<\|message\|>"
            ),
            "close": "<|call|>",
            "repeats": True,
            "content": "json",
            "transform": families.NAMED_FUNCTION,
        },
        "content": {"open": "<|channel|>final<|message|>", "close": "<|return|>"},
    },
}
TEMPLATES: dict[str, dict[str, Any]] = {
    "hermes": families.HERMES,
    "qwen xml": families.QWEN_XML,
    "gemma4": families.GEMMA4,
    "llama3": families.LLAMA3,
    "mistral": families.MISTRAL,
    "generic": families.GENERIC,
    "harmony": HARMONY,
}
SPECIAL = {
    text: 256 + number
    for number, text in enumerate(
        (
            *("<|end of text|>", "<|im_end|>", "<|eot_id|>", "</s>", "<turn|>", "<|tool_call>"),
            *("<tool_call|>", "[TOOL_CALLS]", "<|channel|>", "<|message|>", "<|constrain|>"),
            *("<|call|>", "<|end|>", "<|return|>", "<|start|>", "<|python_tag|>"),
        )
    )
}  # fmt: skip
CITY = {"type": "string"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": CITY,
                "days": {"type": "integer"},
                "unit": {"enum": ["C", "F"]},
                "at": {"$ref": "#/$defs/point"},
            },
            "required": ["city", "unit"],
            "$defs": {"point": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
PARIS = ("get_weather", {"city": "Paris, é", "days": 2})
NOW = ("clock", {})
# family, answer, content, reasoning, calls
ANSWERS: list[tuple[str, str, str, str, list[tuple[str, Any]]]] = [
    (
        "hermes",
        "<think>\nHm < 3.\n</think>\n\nLook:\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Paris, é", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call><|im_end|>\n<|end of text|>',
        "Look:",
        "Hm < 3.",
        [PARIS, NOW],
    ),
    ("hermes", "  Hello <tool\n\n world \n<|im_end|>", "Hello <tool\n\n world", "", []),
    (
        "hermes",
        'a<tool_call>{"name": broken</tool_call>b',
        'a<tool_call>{"name": broken</tool_call>b',
        "",
        [],
    ),
    ("hermes", '<tool_call>{"name": "clock", "arg', '<tool_call>{"name": "clock", "arg', "", []),
    ("hermes", '<tool_call>{"name": "clock"}', "", "", [NOW]),
    (
        "qwen xml",
        "Yes.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis, é\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call><|im_end|>",
        "Yes.",
        "",
        [PARIS],
    ),
    (
        "gemma4",
        "<|channel>thought\nHm.<channel|><|tool_call>call:get_weather"
        '{city:<|"|>Paris, é<|"|>,days:2}<tool_call|><|tool_call>call:clock{}<tool_call|><turn|>',
        "",
        "Hm.",
        [PARIS, NOW],
    ),
    (
        "llama3",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris, é", "days": 2}}'
        "<|eot_id|>",
        "",
        "",
        [PARIS],
    ),
    (
        "llama3",
        'Say {"name": "x", "parameters": {}}',
        'Say {"name": "x", "parameters": {}}',
        "",
        [],
    ),
    ("llama3", '{"name": "clock", "parameters": {}', '{"name": "clock", "parameters": {}', "", []),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris, é", "days": 2}}, '
        '{"name": "clock", "arguments": {}}]</s>',
        "",
        "",
        [PARIS, NOW],
    ),
    ("generic", '{"name": "clock", "arguments": {}}<|im_end|>\n', "", "", [NOW]),
    ("generic", '{"name": "clock", "argu', '{"name": "clock", "argu', "", []),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris, é", "days": 2}'
        "<|call|>",
        "",
        "Hm.",
        [PARIS],
    ),
    ("harmony", "<|channel|>final<|message|>Hello.<|return|>", "Hello.", "", []),
]

Message = tuple[str, str, list[tuple[str, str, str]]]


def format_of(family: str) -> ResponseFormat:
    return ResponseFormat(TEMPLATES[family], SPECIAL)


def message_of(deltas: list[Delta]) -> Message:
    """The message that a client puts together from deltas."""
    calls: list[list[str]] = []
    for delta in deltas:
        call = delta.tool_call
        assert sum(map(bool, (delta.content, delta.reasoning, call))) == 1
        if call is None:
            continue
        assert bool(call.id) == bool(call.name) == (call.index == len(calls))
        if call.index == len(calls):
            calls.append([call.id, call.name, ""])
        calls[call.index][2] += call.arguments
    content = "".join(delta.content for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    return content, reasoning, [(each[0], each[1], each[2]) for each in calls]


def parsed(format: ResponseFormat, pieces: list[str], prompt: str = "", tools: Any = TOOLS) -> Any:
    parser = format.parser(prompt, tools)
    return message_of([*(d for piece in pieces for d in parser.feed(piece)), *parser.finish()])


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: f"{answer[0]} {answer[1][:20]!r}")
def test_an_answer_is_taken_apart_at_any_split(answer: Any) -> None:
    # Given
    family, text, content, reasoning, calls = answer
    format = format_of(family)
    # When
    message = parsed(format, [text])
    # Then
    assert message[:2] == (content, reasoning)
    assert [(name, json.loads(arguments)) for _, name, arguments in message[2]] == calls
    assert len({id for id, _, _ in message[2]}) == len(calls)
    # And in two pieces, split anywhere, or in single characters
    for at in range(len(text) + 1):
        assert parsed(format, [text[:at], text[at:]]) == message
    assert parsed(format, [*text]) == message


FRAGMENTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>", "</s>", "\n", " "),
        *('{"name": "clock", "arguments": {}}', "<|tool_call>call:clock{}", "<tool_call|>", "}"),
        *("[TOOL_CALLS]", '[{"name": "clock", "arguments": {}}]', "<function=clock>", "<|"),
        *('{"name": "clock", "parameters": ', "<|call|>", "<|channel|>final<|message|>"),
        *("</function>", "x", "é", "\ud800"),
    ]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(FRAGMENTS, max_size=12), st.data())
def test_any_split_gives_the_same_message(family: str, parts: list[str], data: Any) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parsed(format_of(family), [text])
    assert parsed(format_of(family), pieces) == whole
    # Special tokens are in no text, and calls are objects
    assert not any(token in whole[0] + whole[1] for token in SPECIAL)
    assert all(isinstance(json.loads(arguments), dict) for _, _, arguments in whole[2])


# Transformers raises where a call is malformed.
WELL_FORMED = [each for each in ANSWERS if each[4] or each[2].startswith("Hello")]


@pytest.mark.parametrize(
    "answer", WELL_FORMED, ids=lambda answer: f"{answer[0]} {answer[1][:20]!r}"
)
def test_messages_are_those_of_transformers(answer: Any) -> None:
    # Given
    family, text, content, reasoning, calls = answer
    # When
    message = parse_response(text.rstrip(), TEMPLATES[family], prefix="", tools=TOOLS)
    # Then: Transformers keeps the last of several texts, and nests a list of calls
    assert message.get("content", "").removesuffix("<|end of text|>") in (content, "")
    assert message.get("reasoning_content", "") == reasoning
    given_calls = message.get("tool_calls", [])
    if family == "mistral":
        (given_calls,) = given_calls
    functions = [each["function"] for each in given_calls]
    assert [(each["name"], each.get("arguments", {})) for each in functions] == calls


def test_a_prompt_may_have_begun_the_answer() -> None:
    # Given prompts that end within reasoning, after it, or within the content
    format, begin = (
        format_of("hermes"),
        "<|im_start|>user\n<think>x<|im_end|>\n<|im_start|>assistant\n",
    )
    assert parsed(format, ["Hm.</think>\n\nYes."], f"{begin}<think>\n") == ("Yes.", "Hm.", [])
    assert parsed(format, ["Yes."], f"{begin}<think>\n\n</think>\n\n") == ("Yes.", "", [])
    assert parsed(format, ["Yes."], begin) == ("Yes.", "", [])
    # Then a continued message keeps its space
    assert parsed(format, [" dear. "], f"{begin}Hello") == (" dear.", "", [])
    # And a prompt without the anchor counts only where it ends in reasoning
    assert parsed(format, ["Hm.</think>Yes."], "other <think>\n") == ("Yes.", "Hm.", [])
    assert parsed(format, ["Yes."], "<think> other") == ("Yes.", "", [])


def test_reasoning_is_split_for_any_model() -> None:
    assert split_reasoning("Hm.</think>\n\nYes.", "<｜Assistant｜><think>\n") == ("Hm.", "Yes.")
    assert split_reasoning("<think>Hm.</think>Yes.") == ("Hm.", "Yes.")
    assert split_reasoning("Yes.", "<|im_start|>assistant\n") == ("", "Yes.")
    assert split_reasoning("cut off", "<|im_start|>assistant\n<think>") == ("cut off", "")


def test_without_tools_a_call_is_content() -> None:
    text = 'a <tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    assert parsed(format_of("hermes"), [text], tools=()) == (text, "", [])


def test_ids_are_the_same_for_a_stream_that_is_taken_up_again() -> None:
    text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    first, again = (parsed(format_of("hermes"), [text], "p")[2][0][0] for _ in range(2))
    assert first == again != parsed(format_of("hermes"), [text], "q")[2][0][0]
    assert len(first) == 9
    assert first.isalnum()


@pytest.mark.parametrize(
    ("model_type", "chat_template", "template"),
    [
        ("qwen3", "", families.HERMES),
        ("qwen3_5", "", families.QWEN_XML),
        ("gemma4", "", families.GEMMA4),
        ("llama", "", None),
        ("llama", "<|im_start|> <tool_call>", families.HERMES),
        ("llama", '<|start_header_id|> "parameters": ', families.LLAMA3),
        ("mistral", '"[TOOL_CALLS] ["', families.MISTRAL),
        ("qwen2", "<｜Assistant｜> </think>", families.THINKING),
        ("llama", "<|im_start|>", None),
        ("qwen2", "<|im_start|>", None),
    ],
)
def test_families_are_told_by_chat_template_then_by_type(
    model_type: str, chat_template: str, template: Any
) -> None:
    assert families.fallback_template(model_type, chat_template) is template
    format = ResponseFormat.of(None, model_type, chat_template)
    assert (format is None) == (template is None)
    own = ResponseFormat.of(HARMONY, model_type, chat_template)
    assert own is not None
    assert own.has_calls


@pytest.mark.parametrize("template", [{}, {"fields": {}}, {"start_anchor": "(", "fields": 3}])
def test_a_template_that_is_not_valid_is_refused(template: Any) -> None:
    with pytest.raises(CheckpointError, match="response_template is not valid"):
        ResponseFormat({"x": 1, **template})


class Letters:
    """A tokenizer of bytes, the special tokens, and a mark that chance would hardly spell."""

    eos_token_id, bos_token_id = 256, None
    tokens = [  # noqa: RUF012
        *(bytes([n]) for n in range(256)),
        *(text.encode() for text in (*SPECIAL, "\n</parameter>")),
    ]
    special_token_ids = list(SPECIAL.values())  # noqa: RUF012

    def __call__(self, text: Any) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = LLTokenizer(TokenizerWrapper(Letters()))
PLAIN = set(b'abc 019{}[]",:.<>/=_\n') | set(b"getwahrcloknuipmsjCF")


def walk(grammar: str, seed: int) -> str:
    """A text that the grammar allows, by chance; its strings become short."""
    chance, matcher, ids = random.Random(seed), LLMatcher(TOKENIZER, grammar), []
    assert not matcher.is_error(), matcher.get_error()
    mask = allocate_token_bitmask(1, TOKENIZER.vocab_size)
    while not matcher.is_stopped():
        fill_next_token_bitmask(matcher, mask)
        allowed = [n for n in range(len(Letters.tokens)) if mask[0][n // 32] >> (n % 32) & 1]
        if 256 in allowed and (len(allowed) == 1 or chance.random() < 0.3):
            break
        allowed = [n for n in allowed if n != 256]
        common = [n for n in allowed if n > 256 or n in PLAIN] or allowed
        ends = [n for n in common if n > 256 or n in b'"}]\n<']
        token = chance.choice(ends if ends and chance.random() < 0.4 else common)
        ids.append(token)
        assert matcher.consume_token(token)
        assert len(ids) < 5000
    assert matcher.is_accepting() or matcher.is_stopped()
    return b"".join(Letters.tokens[n] for n in ids).decode()


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize(
    ("choice", "parallel"),
    [
        ("required", True),
        ("required", False),
        ({"type": "function", "function": {"name": "get_weather"}}, True),
    ],
)
def test_what_a_forced_grammar_allows_are_calls(family: str, choice: Any, parallel: bool) -> None:
    # Given
    format = format_of(family)
    grammar = format.tool_grammar(TOOLS, choice, parallel)
    assert grammar is not None
    for seed in range(8):
        # When
        text = walk(grammar, seed)
        content, reasoning, calls = parsed(format, [text])
        # Then it is calls, of the tools and with the arguments that the choice and schemas ask for
        assert (content, reasoning) == ("", ""), text
        assert calls
        assert len(calls) == 1 or (choice == "required" and parallel)
        for _, name, given_arguments in calls:
            arguments = json.loads(given_arguments)
            assert name == "get_weather" or (choice == "required" and name == "clock")
            if name == "clock":
                assert arguments == {}
                continue
            assert {"city", "unit"} <= arguments.keys() <= {"city", "unit", "days", "at"}
            assert isinstance(arguments["city"], str)
            assert arguments["unit"] in ("C", "F")
            assert isinstance(arguments.get("days", 0), int)
            assert isinstance(arguments.get("at", []), list)


def test_reasoning_that_the_prompt_has_begun_ends_before_a_forced_call() -> None:
    # Given
    format, prompt = format_of("hermes"), "<|im_start|>assistant\n<think>\n"
    grammar = format.tool_grammar([CLOCK], "required", False, prompt)
    assert grammar is not None
    # When / Then
    text = 'Hm.</think>\n\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    matcher = LLMatcher(TOKENIZER, grammar)
    assert matcher.consume_tokens(list(text.encode()))
    assert matcher.is_accepting()
    content, reasoning, calls = parsed(format, [text], prompt)
    assert (content, reasoning, [name for _, name, _ in calls]) == ("", "Hm.", ["clock"])


def test_no_grammar_where_nothing_is_forced() -> None:
    for choice in (None, "auto", "none"):
        assert format_of("hermes").tool_grammar(TOOLS, choice, True) is None


@pytest.mark.parametrize(
    ("tools", "choice", "problem"),
    [
        ([], "auto", "tools: empty"),
        ([CLOCK] * 200, "auto", "tools: 200 tools, at most 128"),
        ([CLOCK, CLOCK], "auto", r"tools\[1\].function.name 'clock': a second tool"),
        ([{"type": "web_search"}], "auto", r"tools\[0\].type 'web_search' is not supported"),
        ([{"type": "function"}], "auto", r"tools\[0\].function: expected an object"),
        ([{"function": {"name": "a b"}}], "auto", r"tools\[0\].function.name 'a b'"),
        ([{"function": {"name": "a", "parameters": []}}], "auto", "a schema of type object"),
        ([CLOCK], "always", "tool_choice 'always': one of none, auto, required"),
        ([CLOCK], {"function": {"name": "x"}}, "tool_choice 'x': no tool has this name"),
        (
            [{"function": {"name": "a", "parameters": {"not": {}}}}],
            "required",
            "tools: the parameters of tool a cannot be forced: .*not",
        ),
    ],
)
def test_tools_that_cannot_work_are_refused_by_name(tools: Any, choice: Any, problem: str) -> None:
    with pytest.raises(BadRequest, match=problem):
        format_of("hermes").tool_grammar(tools, choice, True)


def test_a_model_whose_calls_are_not_known_cannot_be_forced() -> None:
    with pytest.raises(BadRequest, match="how this model writes a call is not known"):
        ResponseFormat(families.THINKING).tool_grammar(TOOLS, "required", True)

"""Chat templates: prompts are those of Transformers' `apply_chat_template`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skynet.checkpoint.text_files import text_files
from skynet.errors import BadRequest
from skynet.request.prompts import token_ids
from skynet.tokenizer import chat_options
from skynet.tokenizer.chat_options import ChatOptions
from skynet.tokenizer.chat_template import ChatTemplate
from skynet.tokenizer.text import Text
from tests import chat_templates
from tests.made_tokenizers import directory

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <now> in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "unit": {"type": ["string", "null"]},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"properties": {}}}}
SYSTEM = {"role": "system", "content": "Be brief, é."}
USER = {"role": "user", "content": " What is the weather in Köln? "}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": [1, 2]}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "18.5"}
ANSWER = {"role": "assistant", "content": "It is 18.5 °C. "}
TOOL_TURN = [USER, CALL, RESULT]
TALK = [USER, ANSWER, {"role": "user", "content": "And tomorrow?"}]
THINKING = [USER, {**ANSWER, "reasoning_content": "Let me look.\n"}]

ONE = {"default": chat_templates.CHATML, "tool_use": chat_templates.HERMES_TOOLS}
CASES: dict[str, tuple[Any, list[dict[str, Any]], dict[str, Any]]] = {
    "llama3": (chat_templates.LLAMA3, [SYSTEM, *TALK], {}),
    "llama3 tools": (chat_templates.LLAMA3, TOOL_TURN, {"tools": [WEATHER, CLOCK]}),
    "llama3 no tools": (chat_templates.LLAMA3, TALK, {"tools": []}),
    "llama3 variable": (
        chat_templates.LLAMA3,
        [SYSTEM, *TOOL_TURN],
        {"tools": [WEATHER], "chat_template_kwargs": {"tools_in_user_message": False}},
    ),
    "llama3 continued": (chat_templates.LLAMA3, [USER, ANSWER], {"continue_final_message": True}),
    "qwen3": (chat_templates.QWEN3, [SYSTEM, *TALK], {}),
    "qwen3 tools": (chat_templates.QWEN3, [SYSTEM, *TOOL_TURN, RESULT], {"tools": [WEATHER]}),
    "qwen3 no thinking": (
        chat_templates.QWEN3,
        TALK,
        {"chat_template_kwargs": {"enable_thinking": False}},
    ),
    "qwen3 reasoning": (chat_templates.QWEN3, THINKING, {"add_generation_prompt": False}),
    "qwen3 continued": (chat_templates.QWEN3, [USER, ANSWER], {"continue_final_message": True}),
    "mistral": (chat_templates.MISTRAL, [SYSTEM, *TALK], {}),
    "mistral tools": (chat_templates.MISTRAL, TOOL_TURN, {"tools": [WEATHER, CLOCK]}),
    "mistral continued": (chat_templates.MISTRAL, [USER, ANSWER], {"continue_final_message": True}),
    "gemma": (chat_templates.GEMMA, TALK, {}),
    "gemma no prompt": (chat_templates.GEMMA, TALK, {"add_generation_prompt": False}),
    "gemma continued": (chat_templates.GEMMA, [USER, ANSWER], {"continue_final_message": True}),
    "smollm2": (chat_templates.SMOLLM2, TALK, {}),
    "smollm2 continued": (chat_templates.SMOLLM2, [USER, ANSWER], {"continue_final_message": True}),
    "named without tools": (ONE, [SYSTEM, *TALK], {}),
    "named with tools": (ONE, [SYSTEM, *TOOL_TURN], {"tools": [WEATHER, CLOCK]}),
    "documents": (
        chat_templates.RAG,
        TALK,
        {
            "documents": [{"title": "a", "text": "é"}, {"title": "b", "text": "c"}],
            "chat_template_kwargs": {"citation_mode": "off"},
        },
    ),
    "a special token as a variable": (
        chat_templates.GEMMA,
        TALK,
        {"chat_template_kwargs": {"bos_token": "<other>"}},
    ),
    "parts": (
        chat_templates.BOTH_FORMS,
        [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}, ANSWER],
        {},
    ),
    "parts continued": (
        chat_templates.BOTH_FORMS,
        [USER, {"role": "assistant", "content": [{"type": "text", "text": "x "}]}],
        {"continue_final_message": True},
    ),
    "developer": (
        chat_templates.DEVELOPER,
        [{"role": "developer", "content": "x"}, *THINKING, USER],
        {},
    ),
}


def load(path: Path, template: Any) -> tuple[Text, Any]:
    """The staged text files, and Transformers' tokenizer, of a model with this template."""
    from transformers import AutoTokenizer

    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    directory(path, "qwen2", {"chat_template": template, "bos_token": "<|endoftext|>"})
    return Text(text_files(path)), AutoTokenizer.from_pretrained(str(path), local_files_only=True)


@pytest.mark.parametrize("case", CASES)
def test_prompts_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    # Given
    template, messages, given = CASES[case]
    text, tokenizer = load(tmp_path, template)
    # When
    arguments = {"add_generation_prompt": not given.get("continue_final_message"), **given}
    arguments |= arguments.pop("chat_template_kwargs", {})
    expected = tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
    ids = tokenizer.apply_chat_template(messages, return_dict=False, **arguments)
    # Then, with arguments of tool calls as objects and as OpenAI's clients send them
    for each in (messages, as_openai(messages)):
        options = ChatOptions.checked(**given)
        assert text.chat_text(each, options) == expected
        assert text.chat(each, options) == ids


def as_openai(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    copies = json.loads(json.dumps(messages))
    for message in copies:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return copies


def rendered(template: str, *messages: Any, **given: Any) -> str:
    return ChatTemplate(template, {"bos_token": "<s>"}).render(
        messages, ChatOptions.checked(**given)
    )


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def test_text_parts_are_joined_for_a_template_that_reads_texts() -> None:
    assert rendered(chat_templates.CHATML, user("a", "b")) == rendered(
        chat_templates.CHATML, {"role": "user", "content": "a\nb"}
    )
    assert "a|b|" in rendered(chat_templates.BOTH_FORMS, user("a", "b"))


def test_a_text_becomes_a_part_for_a_template_that_reads_parts_only() -> None:
    text = rendered(chat_templates.PARTS_ONLY, {"role": "user", "content": "Hello"})
    assert text == "user: Hello<end>\nAssistant:"
    continued = rendered(chat_templates.PARTS_ONLY, user("Hi"), ANSWER, continue_final_message=True)
    assert continued.endswith("assistant: It is 18.5 °C. ")


def test_a_developer_is_the_system_unless_the_template_knows_the_role() -> None:
    message = {"role": "developer", "content": "x"}
    assert "<|im_start|>system\nx" in rendered(chat_templates.CHATML, message)
    assert "<|start|>root<|message|>x" in rendered(chat_templates.DEVELOPER, message)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("read", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_under_each_name(name: str, read: str) -> None:
    template = f"{{% for m in messages %}}{{{{ m.{read} }}}}{{% endfor %}}"
    assert rendered(template, {"role": "assistant", "content": "", name: "why"}) == "why"


@pytest.mark.parametrize("arguments", ["", "  ", None, {}, "{}"])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert rendered(template, {"role": "assistant", "tool_calls": [call]}) == "{}"


def test_an_assistant_may_have_said_nothing() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": []}
    expected = rendered(chat_templates.CHATML, {"role": "assistant", "content": ""})
    assert rendered(chat_templates.CHATML, message) == expected


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            r"messages\[0\]\.content\[0\]: type 'image_url' is not supported",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]},
            r"messages\[0\]\.content\[1\]: type 'input_audio' is not supported",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\]\.text: expected text"),
        ({"role": "user", "content": None}, r"content: expected text, got NoneType"),
        ({"role": "tool", "content": "x", "tool_call_id": 3}, r"tool_call_id: expected text"),
        ({"role": "assistant", "tool_calls": {}}, r"tool_calls: expected a list, got dict"),
        ({"role": "assistant", "tool_calls": [{}]}, r"tool_calls\[0\]: expected"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments: not JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            r"function\.arguments: expected an object, got list",
        ),
    ],
)
def test_a_message_that_cannot_work_is_refused_by_name(message: Any, problem: str) -> None:
    with pytest.raises(BadRequest, match=problem):
        rendered(chat_templates.CHATML, message)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"tools": [WEATHER]}, "tools: the model's chat template does not read tools"),
        ({"documents": [{"text": "x"}]}, "documents: the model's chat template does not"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            r"chat_template_kwargs\.enable_thinking: the model's chat template does not read",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs: 'messages'"),
        ({"chat_template_kwargs": {"not a name": 1}}, "chat_template_kwargs: 'not a name'"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: expected an object, got list"),
        ({"tools": "x"}, "tools: expected a list of objects, got str"),
        ({"tools": [WEATHER, 3]}, r"tools\[1\]: expected an object, got int"),
        ({"tools": [{"function": b"x"}]}, "tools: not of JSON's types"),
        ({"tools": [{}] * 2000}, "tools: 2000 items, at most 1024"),
        ({"continue_final_message": 1}, "continue_final_message 1: True or False"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message with add_generation_prompt",
        ),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(given: Any, problem: str) -> None:
    with pytest.raises(BadRequest, match=problem):
        rendered(chat_templates.SMOLLM2, USER, **given)


def test_a_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(BadRequest, match="leaves out or changes the last message"):
        rendered("{{ messages[0].content }}", USER, ANSWER, continue_final_message=True)
    with pytest.raises(BadRequest, match="no content to continue"):
        rendered(chat_templates.QWEN3, USER, CALL, continue_final_message=True)


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_options, "MAX_CHARACTERS", 100)
    with pytest.raises(BadRequest, match="tools: 103 characters, at most 100"):
        ChatOptions.checked(tools=[{"a": "x" * 92}])
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadRequest, match="tools: not of JSON's types"):
        ChatOptions.checked(tools=[{"a": deep}])
    monkeypatch.undo()
    with pytest.raises(BadRequest, match=r"characters, at most 4000000"):
        rendered("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}", user("x" * 50))


def test_the_variables_of_a_template_are_known() -> None:
    assert {"tools", "enable_thinking"} <= ChatTemplate(chat_templates.QWEN3, {}).variables
    assert "tools" not in ChatTemplate(chat_templates.SMOLLM2, {}).variables
    named = {"tool_use": chat_templates.HERMES_TOOLS}
    assert "tools" in ChatTemplate(chat_templates.CHATML, {}, named).variables
    assert "tools" in ChatTemplate(chat_templates.LLAMA3, {}).variables


def test_options_of_a_chat_are_refused_without_one(tmp_path: Path) -> None:
    # Given
    text, _ = load(tmp_path, chat_templates.QWEN3)
    chat = ChatOptions.checked(tools=[WEATHER])
    # When a text is put into the template / Then it has them, otherwise not
    question = str(USER["content"])
    assert token_ids(question, text, raw=False, chat=chat) == text.chat([USER], chat)
    for prompt in (question, [1, 2]):
        with pytest.raises(BadRequest, match="tools: only chat messages"):
            token_ids(prompt, text, raw=True, chat=chat)


def test_a_response_template_is_staged(tmp_path: Path) -> None:
    # Given
    template = {"start_anchor": "x", "fields": {"content": {"close": "<|im_end|>"}}}
    directory(tmp_path, "qwen2", {"response_template": template})
    # When / Then
    text = Text(text_files(tmp_path))
    assert text.response_template == template
    assert set(text.special_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert load(tmp_path / "other", chat_templates.QWEN3)[0].response_template is None

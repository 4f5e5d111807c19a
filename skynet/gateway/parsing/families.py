"""Response templates of families whose tokenizers have none, and how families write a tool call.

Data. The templates are of `transformers.utils.chat_parsing`; those of Qwen and Gemma 4 are
`transformers serve`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Template = dict[str, Any]

ROLE = {"role": "assistant"}
FUNCTION = {"type": "function", "function": "{content}"}
NAMED_FUNCTION = {
    "type": "function",
    "function": {"name": "{name}", "arguments": "{content}"},
}
THINK = {"open": "<think>", "close": "</think>", "content": "text"}
# White space before an end token, or a call, belongs to neither content nor call.
CHATML_ENDS = r"\s*(?:<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>)"

HERMES: Template = {
    "defaults": ROLE,
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": THINK,
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": FUNCTION,
        },
        "content": {"close_pattern": CHATML_ENDS, "content": "text"},
    },
}
QWEN_XML: Template = {
    "defaults": ROLE,
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": THINK,
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": (r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"),
            },
            "transform": NAMED_FUNCTION,
        },
        "content": {"close_pattern": CHATML_ENDS, "content": "text"},
    },
}
GEMMA4: Template = {
    "defaults": ROLE,
    "start_anchor": ["<|turn>model\n", "<tool_response|>"],
    "fields": {
        "reasoning_content": {
            "open": "<|channel>thought\n",
            "close": "<channel|>",
            "content": "text",
        },
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>[\w.-]+)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": NAMED_FUNCTION,
        },
        "content": {"close": ["<turn|>", "<|tool_response>", "<eos>"], "content": "text"},
    },
}
# Llama 3 writes a call as the whole message, without a mark before it.
LLAMA3: Template = {
    "defaults": ROLE,
    "start_anchor": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "fields": {
        "tool_calls": {
            "open_pattern": (
                r"\A\s*(?:<\|python_tag\|>)?\s*\{\s*\"name\"\s*:\s*\"(?P<name>[^\"\\]+)\"\s*,"
                r"\s*\"parameters\"\s*:\s*"
            ),
            "close_pattern": r"\}\s*(?:<\|eot_id\|>|<\|eom_id\|>|<\|end_of_text\|>|\Z)",
            "repeats": True,
            "content": "json",
            "transform": NAMED_FUNCTION,
        },
        "content": {
            "close_pattern": r"\s*(?:<\|eot_id\|>|<\|eom_id\|>|<\|end_of_text\|>)",
            "content": "text",
        },
    },
}
MISTRAL: Template = {
    "defaults": ROLE,
    "start_anchor": "[/INST]",
    "fields": {
        "tool_calls": {
            "open": "[TOOL_CALLS]",
            "close": "</s>",
            "repeats": True,
            "content": "json",
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{arguments}"},
            },
            "transform_each": True,
        },
        "content": {"close_pattern": r"\s*</s>", "content": "text"},
    },
}
# Models that reason and call no tools; where their chat templates begin an answer.
THINKING: Template = {
    "defaults": ROLE,
    "start_anchor_pattern": (
        r"<\|im_start\|>assistant\n|<｜Assistant｜>|\[/INST\]|<start_of_turn>model\n"
        r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|<\|assistant\|>\n?"
    ),
    "fields": {"reasoning_content": THINK, "content": {"content": "text"}},
}
# The whole answer is one call, as a grammar forces any model to write it.
GENERIC: Template = {
    "defaults": ROLE,
    "start_anchor": "\n",
    "fields": {
        "tool_calls": {
            "close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<end_of_turn>|</s>)",
            "repeats": True,
            "content": "json",
            "transform": FUNCTION,
        },
    },
}


@dataclass(frozen=True)
class Fallback:
    """A template for models whose chat template has all `marks`, or of these types."""

    template: Template
    marks: tuple[str, ...]
    model_types: frozenset[str] = frozenset()


FALLBACKS = (
    Fallback(
        QWEN_XML,
        ("<tool_call>", "<function="),
        frozenset(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")),
    ),
    Fallback(GEMMA4, ("<|tool_call>call:",), frozenset(("gemma4", "gemma4_text"))),
    Fallback(
        HERMES,
        ("<|im_start|>", "<tool_call>"),
        frozenset(
            (
                *("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_moe"),
                *("qwen3_next", "qwen3_vl", "qwen3_vl_moe"),
            )
        ),
    ),
    Fallback(LLAMA3, ("<|start_header_id|>", '"parameters": ')),
    Fallback(MISTRAL, ("[TOOL_CALLS] [",)),
    Fallback(THINKING, ("</think>",)),
)


def fallback_template(model_type: str, chat_template: str) -> Template | None:
    """The template of a family: its chat template tells more than its type."""
    for fallback in FALLBACKS:
        if all(mark in chat_template for mark in fallback.marks):
            return fallback.template
    if chat_template:  # which shows that it writes no calls
        return None
    for fallback in FALLBACKS:
        if model_type in fallback.model_types:
            return fallback.template
    return None


@dataclass(frozen=True)
class CallForm:
    """How calls are written: first, then for each call before, name, middle, arguments and after.

    between: of two calls. parameters: arguments are `<parameter=key>` marks, not JSON.
    """

    before: str
    middle: str
    after: str
    first: str = ""
    between: str = "\n"
    last: str = ""
    parameters: bool = False

    def text(self, name: str, arguments: str, count: int = 1) -> str:
        """Calls, all the same."""
        call = f"{self.before}{name}{self.middle}{arguments}{self.after}"
        return self.first + self.between.join([call] * count) + self.last


CALL_FORMS = (
    CallForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"),
    CallForm(
        "<tool_call>\n<function=", ">\n", "</function>\n</tool_call>", parameters=True
    ),
    CallForm("<|tool_call>call:", "", "<tool_call|>", between=""),
    CallForm('{"name": "', '", "arguments": ', "}"),
    CallForm('{"name": "', '", "parameters": ', "}"),
    CallForm(
        *('{"name": "', '", "arguments": ', "}"),
        first="[TOOL_CALLS] [", between=", ", last="]",
    ),
    CallForm(
        "<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "<|call|>"
    ),
)  # fmt: skip

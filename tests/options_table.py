"""The documented table of request options, made of the rows of the option table.

`python -m tests.options_table` prints it, to be pasted below the marker; a test compares.
"""

from __future__ import annotations

from skynet.request.option_table import ARGUMENTS, OPTIONS

MARKER = "<!-- options -->"


def options_table() -> str:
    """The Markdown table, with a line for each option."""
    lines = ["| option | default | values | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{option.name}` | {option.shown_default} | {option.values} | {option.help} |"
        for option in OPTIONS + ARGUMENTS
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(options_table(), end="")

"""The lines for an administrator in docs/operations.md: users with limited rights."""

from __future__ import annotations

from pathlib import Path

import redis

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
PASSWORDS = {"skynet": "CHANGE-ME", "skynet-client": "CHANGE-ME-TOO"}


def documented_lines() -> list[str]:
    """`ACL SETUSER ...`, each a command."""
    block = PAGE.read_text(encoding="utf-8").partition("<!-- access lists -->\n```text\n")[2]
    return [line for line in block.partition("```")[0].splitlines() if line]


def documented_rules(user: str) -> list[str]:
    """All rules of a user, in their order."""
    lines = [line.split() for line in documented_lines()]
    return [rule for words in lines if words[2] == user for rule in words[3:]]


def set_users(admin: redis.Redis) -> None:
    """Run all lines."""
    for line in documented_lines():
        admin.execute_command(*line.split())


def rule_of(needed: str) -> str:
    """The rule that allows a command."""
    first, second, *_ = [*needed.lower().split(), ""]
    return f"+{first}|{second}" if first in ("script", "client") else f"+{first}"

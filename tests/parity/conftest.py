"""One fixture: the answers of Transformers, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from references import Reference, make_reference


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Reference]:
    """Makes the reference of a family and the config fields that differ; each once."""
    made: dict[str, Reference] = {}

    def make(family: str, **fields: Any) -> Reference:
        key = f"{family} {fields}"
        if key not in made:
            made[key] = make_reference(family, fields, tmp_path_factory.mktemp(family))
        return made[key]

    return make

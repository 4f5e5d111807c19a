"""Differences of JSON documents turn the one into the other."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skynet.gateway.cluster.json_patch import apply, diff

NAMES = st.text(alphabet="ab/~0é ", max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)


@given(OBJECTS, OBJECTS)
def test_a_difference_turns_one_document_into_the_other(before: Any, after: Any) -> None:
    kept = json.dumps(before)
    patched = apply(before, list(diff(before, after)))
    assert json.dumps(patched, sort_keys=True) == json.dumps(after, sort_keys=True)
    assert json.dumps(before) == kept  # the argument is unchanged


@given(st.lists(OBJECTS, min_size=2, max_size=5))
def test_a_stream_of_patches_ends_at_the_last_snapshot(snapshots: list[Any]) -> None:
    document = snapshots[0]
    for before, after in pairwise(snapshots):
        document = apply(document, json.loads(json.dumps(list(diff(before, after)))))
    assert document == snapshots[-1]


@given(OBJECTS)
def test_equal_documents_have_no_difference(document: Any) -> None:
    assert list(diff(document, json.loads(json.dumps(document)))) == []


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), (0, False), (None, 0)])
def test_values_of_another_type_differ(before: Any, after: Any) -> None:
    assert list(diff({"a": before}, {"a": after})) == [
        {"op": "replace", "path": "/a", "value": after}
    ]


def test_only_what_changed_is_sent() -> None:
    # Given a grid of which one cell changes, a request that ends, and a list that grows
    before = {"cells": [{"state": "ready"}, {"state": "loading"}], "r": {"1": 1}, "events": [1]}
    after = {"cells": [{"state": "ready"}, {"state": "ready"}], "r": {}, "events": [1, 2]}
    # When / Then
    assert list(diff(before, after)) == [
        {"op": "replace", "path": "/cells/1/state", "value": "ready"},
        {"op": "remove", "path": "/r/1"},
        {"op": "replace", "path": "/events", "value": [1, 2]},
    ]

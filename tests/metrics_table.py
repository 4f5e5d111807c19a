"""The documented table of metrics, made of the rows of the metric table.

`python -m tests.metrics_table` prints it, to be pasted below the marker; a test compares.
"""

from __future__ import annotations

from skynet.store.metric_table import GATEWAY, METRICS

MARKER = "<!-- metrics -->"


def metrics_table() -> str:
    """The Markdown table, with a line for each metric."""
    lines = ["| metric | kind | labels | at | meaning |", "| --- | --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        path = "`/metrics`" if metric.source == GATEWAY else "`/cluster/metrics`"
        lines.append(
            f"| `{metric.shown_name}` | {metric.kind} | {labels} | {path} | {metric.help} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(metrics_table(), end="")

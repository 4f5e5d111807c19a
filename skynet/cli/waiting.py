"""Says on stderr why an answer does not come, while a command waits for it."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from skynet.cli import terminal

NOTICE_S = 3.0  # without progress
LOOK_S = 1.0


class WaitingNotices:
    """Until it is left, a line after `NOTICE_S` without progress if the cluster cannot run
    requests, and a line whenever the reason changes. Nothing if the cluster only takes its time.

    url: of the cluster's Redis.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._progress_at = time.monotonic()
        self._began = False  # an answer is being streamed
        self._said = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="waiting-notices", daemon=True)

    def __enter__(self) -> WaitingNotices:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()  # not joined: a Redis that does not answer must not delay the end

    def progress(self) -> None:
        """A token or an answer has come."""
        self._progress_at, self._began = time.monotonic(), True

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            if time.monotonic() - self._progress_at < NOTICE_S:
                self._said = ""
            elif not self._ended.is_set():
                self._say(self._reason())

    def _say(self, reason: str) -> None:
        if reason == self._said or self._ended.is_set():
            return
        self._said = reason
        if self._began and sys.stdout.isatty():
            terminal.err.print()  # ends the line of the answer
        text = f"The request waits: {reason}" if reason else "The cluster is ready."
        terminal.err.print(text, markup=False, highlight=False, soft_wrap=True)

    def _reason(self) -> str:
        from skynet.client.status import cluster_status
        from skynet.store.connection import connect

        try:
            with connect(self._url, timeout_s=5) as client:
                return "; ".join(cluster_status(client, self._url, events=1)["waiting_for"])
        except Exception as error:  # the answer may still come
            return str(error)

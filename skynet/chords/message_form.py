"""The messages of one task, with gaps for what differs from message to message.

Celery and kombu make the form, once: headers, properties and the JSON around them are theirs.
"""

from __future__ import annotations

import uuid
from base64 import b64encode
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

from kombu.serialization import dumps
from kombu.utils.json import dumps as json_dumps

from skynet.wire import codec, keys

if TYPE_CHECKING:
    from celery import Celery

GAPS = ("id", "group", "group_index", "argsrepr", "delivery_tag", "routing_key", "body")


class MessageForm:
    """A form of Celery's protocol 2 for one task without a result.

    channel: kombu's, of the broker.
    origin: the name of the sending process.
    """

    def __init__(self, app: Celery, channel: Any, task: str, origin: str) -> None:
        made = app.amqp.as_task_v2(
            _gap("id"),
            task,
            group_id=_gap("group"),
            group_index=_gap("group_index"),
            argsrepr=_gap("argsrepr"),
            kwargsrepr="",
            ignore_result=True,
            origin=origin,
        )
        content_type, encoding, _ = dumps([], serializer=keys.SERIALIZER)
        properties = {**made.properties, "delivery_mode": 2}
        message = channel.prepare_message(b"", 0, content_type, encoding, made.headers, properties)
        channel._inplace_augment_message(message, "", _gap("routing_key"))
        message["body"] = _gap("body")
        message["properties"]["delivery_tag"] = _gap("delivery_tag")
        form = json_dumps(message).replace("%", "%%")
        for name in GAPS:
            form = form.replace(json_dumps(_gap(name)), f"%({name})s")
        self._form = form

    def fill(
        self,
        queue: str,
        body: str,
        *,
        group_id: str | None = None,
        group_index: int | None = None,
        argsrepr: str = "",
    ) -> bytes:
        """The message to LPUSH into a queue. body: of `encode_body`."""
        id_ = f'"{uuid.uuid4()}"'
        values = {
            "id": id_,
            "group": "null" if group_id is None else quoted(group_id),
            "group_index": "null" if group_index is None else group_index,
            "argsrepr": quoted(argsrepr),
            "delivery_tag": id_,
            "routing_key": quoted(queue),
            "body": f'"{body}"',
        }
        return (self._form % values).encode()


def encode_body(args: Sequence[Any], chord: dict[str, Any] | None = None) -> str:
    """The body of a message, as kombu writes bytes. chord: the signature of the chord's body."""
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": chord}
    return b64encode(codec.encode([list(args), {}, embed])).decode()


def _gap(name: str) -> str:
    return f"<gap:{name}>"

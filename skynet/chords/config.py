"""Celery settings for the plain commands:

    celery -A skynet worker -Q stage0.shard1
    celery -A skynet worker -Q orchestrator
    celery -A skynet flower

SKYNET_REDIS_URL names the Redis server; see skynet/settings.py for the other settings.
"""

from skynet.chords.broker import broker_settings
from skynet.redis_url import RedisURL
from skynet.settings import settings
from skynet.wire.keys import GENERATE_TASK, POP_S, SERIALIZER

_settings = settings()

# The broker's address is in its transport options; the result backend uses the same.
result_backend = "skynet.chords.backend:ChordBackend"
imports = ("skynet.tasks",)

# One task at a time, in the process that holds the weights.
worker_pool = "solo"
worker_concurrency = 1
worker_prefetch_multiplier = 1
worker_consumer = "skynet.chords.app:PatientConsumer"
worker_hijack_root_logger = False
worker_redirect_stdouts = False
worker_cancel_long_running_tasks_on_connection_loss = False
broker_connection_retry_on_startup = True

# Span messages are delivered at most once: redelivery would repeat stale ones an hour later. One
# priority, one BRPOP. Every wait of a publisher has a deadline.
_broker = broker_settings(
    RedisURL.given(_settings.redis_url),
    {
        "global_keyprefix": _settings.prefix,
        "health_check_interval": 3,  # a pop without a reply for 3 s has lost its connection
        "polling_interval": POP_S,  # timeout of the pop; a message ends it at once
        "ack_emulation": False,
        "priority_steps": [0],
        "socket_timeout": 30,
        "socket_connect_timeout": _settings.connect_timeout_s,
    },
)
broker_url = _broker["broker_url"]
broker_use_ssl = _broker["broker_use_ssl"]
broker_transport_options = _broker["broker_transport_options"]
result_backend_transport_options = {"global_keyprefix": _settings.prefix}
redis_socket_timeout = 30
redis_socket_connect_timeout = _settings.connect_timeout_s
redis_retry_on_timeout = False

# Queues are addresses; any other name is an error, not a queue without a worker.
task_create_missing_queues = False
task_default_queue = "orchestrator"
task_routes = {GENERATE_TASK: {"queue": "orchestrator"}}

# No pickle, ever.
accept_content = ["json", SERIALIZER]
task_serializer = "json"
result_serializer = "json"
result_accept_content = ["json"]
result_expires = _settings.result_expires_s

# Events of requests are for people to see; events of spans need SKYNET_TRACE=1 (see skynet/tasks/).
worker_send_task_events = True
task_send_sent_event = False
# Celery would write "started" without a fence; a request's state is in its record.
task_track_started = False

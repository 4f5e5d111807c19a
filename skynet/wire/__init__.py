"""The wire protocol: names of keys, queues and tasks; codec; frames; the messages of a step."""

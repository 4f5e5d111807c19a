"""What crosses the network: names of keys, queues and tasks; the codec; the messages of a step."""

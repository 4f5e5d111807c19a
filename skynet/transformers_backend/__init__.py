"""The Transformers backend: models without a family file run Transformers' layers, cut by its plan.

`description.py` makes the description where the checkpoint is, `shard.py` runs it. Slower than a
family with a file in skynet/models/. Only this package imports Transformers in a worker.
"""

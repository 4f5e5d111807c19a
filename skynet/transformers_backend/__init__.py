"""Families without a file: their layers are Transformers' own, cut by its tensor-parallel plan.

`derive.py` makes the description where the checkpoint is, `shard.py` runs it. Slower than a family
that has a file in skynet/models/, and imported for nothing else: this is where Transformers is.
"""

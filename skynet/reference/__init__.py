"""Transformers' own model, run with one layer's weights in memory; what shards are compared with.

Knows no shards and no plans, only how their cuts divide a product's inputs.
"""

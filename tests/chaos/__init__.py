"""Chaos: a real cluster under load, everything in it killed and cut, every token checked.

python -m tests.chaos --seconds 600 --seed 1
"""

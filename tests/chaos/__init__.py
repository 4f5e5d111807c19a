"""Chaos: faults in a real cluster under load, with every token of every answer checked.

python -m tests.chaos --seconds 600 --seed 1
"""

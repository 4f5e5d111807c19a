"""Names of tasks and poolings. Standard library only: the command line needs it."""

GENERATE, EMBED, FILL_MASK, CLASSIFY = "generate", "embed", "fill-mask", "classify"
TASKS = (GENERATE, EMBED, FILL_MASK, CLASSIFY)
POOLINGS = ("mean", "cls", "last", "max")
MAX_TOP = 1000  # predictions for a mask

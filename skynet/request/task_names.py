"""Names of tasks and poolings. Standard library only: the command line needs it."""

GENERATE, EMBED, FILL_MASK, CLASSIFY = "generate", "embed", "fill-mask", "classify"
RERANK = "rerank"
TASKS = (GENERATE, EMBED, FILL_MASK, CLASSIFY, RERANK)
POOLINGS = ("mean", "cls", "last", "max", "sqrt", "weighted")
MAX_TOP = 1000  # predictions for a mask

"""What can be asked of a model, by name. Light: the command line needs it before anything else."""

GENERATE, EMBED, FILL_MASK, CLASSIFY = "generate", "embed", "fill-mask", "classify"
TASKS = (GENERATE, EMBED, FILL_MASK, CLASSIFY)
POOLINGS = ("mean", "cls", "last", "max")
MAX_TOP = 1000  # tokens for a mask

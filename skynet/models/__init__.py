"""What a model is: one file per family, data only. Start at `registry.load_architecture`."""

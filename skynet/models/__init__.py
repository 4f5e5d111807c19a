"""The model families: one file each, data only. Start at `registry.load_architecture`."""

"""The state of clusters for the page: snapshots, their changes as a stream, and actions."""

"""The page: static files, and the headers with which they are served. Knows nothing of clusters."""

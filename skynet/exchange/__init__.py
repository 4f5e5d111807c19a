"""The exchange of partials among the shards of a stage: direct links, and Redis's Pub/Sub."""

"""The orchestrator process: leadership, members, plans, requests in, answers out."""

"""What a person reads about a run: status, report, the paper beside it, the audit of a step."""

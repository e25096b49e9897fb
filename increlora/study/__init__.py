"""A study: the typed configuration, its expansion to single runs, the plan and the check of finished records."""

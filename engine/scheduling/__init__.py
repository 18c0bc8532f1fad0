"""Which jobs step next, what a step costs, and when a queued job will be done. Plain Python: no torch, no clock."""

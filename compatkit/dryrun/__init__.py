"""A set run on tensors without weights: the error the installed torch would raise, and where (extra: torch)."""

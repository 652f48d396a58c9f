"""Places bytes live, as ranged reads."""

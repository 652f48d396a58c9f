"""The machine and the installs a set is meant for, as far as files tell: no code of an install runs here."""

"""The machine and the installs a set is meant for, as far as files tell: nothing of an install is ever imported here."""

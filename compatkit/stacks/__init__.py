"""What the user names -> a stack: which files, in which roles, read as what."""

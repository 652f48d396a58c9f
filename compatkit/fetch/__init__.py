"""A stack that was checked -> its bytes: pinned in a lock, pulled to a disk, verified and put in place."""

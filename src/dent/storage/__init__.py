"""Files that survive a crash: canonical JSON, atomic writes, and the lock of a folder."""

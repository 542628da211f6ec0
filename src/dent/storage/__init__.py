"""Files that survive a crash: canonical JSON, atomic writes, the lock of a folder."""

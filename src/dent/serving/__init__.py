"""Serve a defense over HTTP, on Ray Serve. Needs the extra `ray`."""

"""Backends: hosted APIs and compatible servers over HTTP, written here, no vendor SDK needed; and stand-ins."""

"""These tests run in virtual time."""

from tests.virtual_time import anyio_backend as anyio_backend

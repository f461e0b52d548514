"""Fixtures that several tests of data share."""

from storage_server import bucket, faults, moto, shards

__all__ = ["bucket", "faults", "moto", "shards"]

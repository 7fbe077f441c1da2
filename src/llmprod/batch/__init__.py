"""The offline batch: what is behind ``client.map``."""

from llmprod.batch.checkpoint import read_checkpoint
from llmprod.batch.handles import Batch, SyncBatch
from llmprod.batch.records import BatchItem, BatchProgress, BatchResult, StoredError

__all__ = ["Batch", "BatchItem", "BatchProgress", "BatchResult", "StoredError", "SyncBatch", "read_checkpoint"]

"""Bytes to records to batches; no Ray."""

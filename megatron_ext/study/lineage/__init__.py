"""From weights back to sources: what is on the disk about a checkpoint, and what is not."""

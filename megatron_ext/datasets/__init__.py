"""What is read: batches, the cursor of one source, their blend, and held-out rows."""

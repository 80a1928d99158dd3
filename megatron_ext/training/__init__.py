"""How it steps: loop, step, optimizer, schedule, state, checkpoint, validation."""

"""A trainer that trains nothing but speaks the handoff for real: put its parent directory on PYTHONPATH."""

"""The contract of Ireko: `CompressionRun`, its validation, and what operator and trainer hand each other."""

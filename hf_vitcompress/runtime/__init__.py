"""What every stage works with: processes, devices, files, checkpoints, hooks, digests, names."""

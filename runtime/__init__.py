"""What every script needs: flags, log, device and ranks, checkpoints."""

"""The parts that every script shares: flags, log, devices and processes, checkpoints, stopping and resuming."""

"""Drawing what a run wrote."""

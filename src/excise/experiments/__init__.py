"""Experiments: plant a victim, repair a network, and the record each leaves."""

"""Engines: where the tasks of a sweep run. Each takes tasks and yields what became of them."""

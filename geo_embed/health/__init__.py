"""What a machine has and lacks: `diagnose` is in `checks.py`."""

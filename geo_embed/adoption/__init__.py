"""Other people's datasets: `adopt`."""

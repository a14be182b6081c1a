"""Every benchmark, and in `results/` every file that one wrote."""

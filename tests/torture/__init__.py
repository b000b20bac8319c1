"""The torture campaign: kills, damaged media and data, bad surroundings, streams, networks. `benchmarks/torture.py` runs it."""

"""What changes a target on purpose, for a while, and says so: steer, reroute, strand."""

"""Programs of probes/ compiled, loaded, attached, and what they send."""

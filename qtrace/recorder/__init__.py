"""From a target to rows of events. Every recorder writes the same rows."""

"""How answers look: for people at the width of their terminal, and as JSON."""

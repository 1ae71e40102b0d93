"""How long a test waits for what must come."""

from __future__ import annotations

# Ends what hangs, and decides nothing: what takes 2 s alone takes four times as long on a slow
# machine of two processors on which two others compute, and now and then more. Below the limit of
# a whole test (``timeout`` in pyproject.toml), so that the failure says what did not come.
TIMEOUT_S = 120.0

"""Hazards of today's QEMU, each shown on stock binaries beside its control (docs/hazards.md).

Adding one is one module here and one line below.
"""

from __future__ import annotations

from qtrace.lab.hazards import ide_resize, job_context, migrate_reads, nbd_reset
from qtrace.lab.hazards.hazard import Hazard

HAZARDS: dict[str, Hazard] = {
    hazard.name: hazard
    for hazard in (job_context.HAZARD, migrate_reads.HAZARD, ide_resize.HAZARD, nbd_reset.HAZARD)
}

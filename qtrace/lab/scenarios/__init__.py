"""The scenarios. Adding one is one module here and one line below."""

from __future__ import annotations

from qtrace.lab.scenario import Scenario
from qtrace.lab.scenarios import (
    crash,
    delete,
    late_reply,
    load,
    main_loop,
    reroute,
    stop_resume,
    stranded,
    vcpu_poll,
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        vcpu_poll.SCENARIO,
        main_loop.SCENARIO,
        load.SCENARIO,
        delete.SCENARIO,
        reroute.SCENARIO,
        late_reply.SCENARIO,
        stop_resume.SCENARIO,
        stranded.SCENARIO,
        crash.SCENARIO,
    )
}

"""QEMU's AioContexts and what waits in them, read over a ``Memory``.

Everything in this package uses the standard library only, in Python 3.9's syntax, and imports
nothing of qtrace but this package and what else does: gdb runs the very same code in its own
Python. Nothing here writes to a target or stops it.

``instructions``
    ``Instruction``, ``Operand``, ``Register``, ``Immediate``, ``Place``; the protocol
    ``Disassembly`` (``address(symbol) -> int | None``,
    ``instructions(address, count) -> list[Instruction]``), which capstone serves outside gdb
    (``qtrace.binary.module_code.ModuleDisassembly``); ``parse_att(address, size, text)`` makes an
    Instruction of a line of gdb's disassembly (default flavour, as
    ``architecture().disassemble()`` gives in ``asm``).
``layout``
    ``Layout``: all addresses and offsets, each None where it is not known; ``Layout.missing()``
    names those.
``calibration``
    ``calibrate(program) -> Layout``: what the code shows.
``walk``
    ``AioReader(memory, layout)``: ``main()``, ``iohandler()``, ``is_context(ctx)``,
    ``contexts(pid, thread_pointers) -> list[Context]``, ``dark()``, ``bottom_halves(ctx)``,
    ``handlers(ctx)``, ``scheduled_coroutines(ctx)``, ``coroutine(address)``, ``jobs()``,
    ``bql_holder()``. Raises ``Missing`` (``.fact``) and ``Torn``.
``gather``
    ``Gathering(reader, missing)``: the same for a whole look; what cannot be read is noted.
``consistent_lists``
    ``ChangingMemory``: reads a list again until two readings agree, else raises ``Torn``
    (``.what``). Of a stopped target only what a core lacks is torn.
``jump_buffer``
    ``saved_registers(memory, co, layout.co_env, guard, architecture)`` of a sleeping coroutine
    (names as in gdb: rbx rbp r12-r15 rsp rip); ``guard_of_thread(memory, fs_base)``,
    ``guard_of_auxv()``.
``debug_facts``
    ``MEMBERS``, ``VARIABLES``: which facts debug info tells; ``believed(layout, told)``.
``model``
    The data: ``Context``, ``BottomHalf``, ``Handler``, ``Coroutine``, ``Job``, ``Poll``,
    ``Thread``, and ``Look``, which holds all of one look.
``waits``
    What a thread waits in and for whom, whether it goes on by itself: ``wait_of(look, thread)``.
``findings``
    ``explain(look, name="") -> list[Finding]``: who is in the way of what is pending, one sentence
    each (``Finding.sentence``); ``confirm(before, now)``: what two looks show alike; pure functions
    over ``Look``. A ``Thread``'s frames are names with offsets, leaf first; its ``polls`` are its
    aio_poll() frames: ``Layout.poll_register`` in such a frame is the context that it polls
    (check with ``AioReader.is_context``).
``inconclusive``
    ``unclear(look) -> list[str]``: what could not be read and would be needed to say that nothing
    is in the way.
"""

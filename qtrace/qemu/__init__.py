"""What the block layer's memory means: coroutines, nodes, requests, read over a ``Memory``.

The standard library and ``qtrace.target``'s own such parts only: gdb's Python runs it too. Nothing
here writes to a target or stops it.

``layout``, ``calibration``
    ``BlockLayout``: where one binary keeps what; ``calibrate(program)`` reads it from small
    exported functions.
``model``
    The data: ``Node``, ``Backend``, ``Request``, ``Coroutine``, ``BlockLook``.
``coroutines``
    ``CoroutineStacks``: every coroutine, found through its stack.
``graph``
    ``GraphReader``: block nodes, backends, requests, exports, states.
``waits``
    What a coroutine sleeps in, as its functions tell.
``requests``
    Which request is stuck, and on whom: pure functions over ``BlockLook``.
"""

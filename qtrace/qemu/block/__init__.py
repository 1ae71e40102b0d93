"""QEMU's block layer: coroutines, nodes, requests, and for what they wait.

``block_layout``, ``block_calibration``
    ``BlockLayout``: where one binary keeps what; ``calibrate(program)`` reads it from small
    exported functions.
``block_model``
    The data: ``Node``, ``Backend``, ``Request``, ``Coroutine``, ``BlockLook``.
``block_walk``
    One look at all of it.
``coroutines``
    ``CoroutineStacks``: every coroutine, found through its stack.
``graph``
    ``GraphReader``: block nodes, backends, requests, exports, states.
``coroutine_waits``
    What a coroutine sleeps in, as its functions tell.
``requests``, ``remarks``
    Which request is stuck, and on whom: pure functions over ``BlockLook``.
"""

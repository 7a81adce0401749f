"""What nobody reads any more of the tables that grow with every job: it is deleted, oldest first, some rows at a time."""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.control.planning.accounts import MAX_STAYS
from orchestrator.control.planning.reputation import MEMORY_S
from orchestrator.control.records import tables
from orchestrator.control.records.database import writing

BATCH = 500
"""Rows of one table at a time: their write locks the others out for some milliseconds."""


def delete_outdated(engine: sa.Engine, now: float) -> bool:
    """A batch of the stays and of the incidents that count for nothing any more. Returns whether there may be more of them."""
    stay_seq, incident_s = tables.stays.c.seq, tables.incidents.c.time_s
    with writing(engine) as connection:
        oldest_read = connection.execute(sa.select(stay_seq).order_by(stay_seq.desc()).offset(MAX_STAYS - 1).limit(1)).scalar()
        more = [_delete_below(connection, incident_s, now - MEMORY_S)]
        if oldest_read is not None:
            more.append(_delete_below(connection, stay_seq, oldest_read))
    return any(more)


def _delete_below(connection: sa.Connection, column: sa.Column[float] | sa.Column[int], limit: float) -> bool:
    last = connection.execute(sa.select(column).where(column < limit).order_by(column).offset(BATCH - 1).limit(1)).scalar()
    connection.execute(column.table.delete().where(column < limit if last is None else column <= last))
    return last is not None

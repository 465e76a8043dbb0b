"""What the log counts. Every refusal, delay and repair shows up in one of these; nothing is dropped unseen."""

from dataclasses import dataclass


@dataclass
class LogCounters:
    """Totals since start, `queued_bytes` the present value. Written by the event loop, save those marked (writer)."""

    appended: int = 0
    appended_bytes: int = 0
    queued_bytes: int = 0
    waited_for_room: int = 0
    refused_full: int = 0
    refused_failed: int = 0
    groups: int = 0
    failovers: int = 0
    rows_shipped: int = 0
    ship_failures: int = 0
    undecodable: int = 0
    damaged_segments: int = 0
    bodies_archived: int = 0
    archive_failures: int = 0
    reads_behind: int = 0
    exported: int = 0
    export_skipped: int = 0

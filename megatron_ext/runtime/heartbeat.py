"""Signs of life for nvidia-resiliency-ext, which kills a rank that gives none.

Its ft_launcher takes torchrun's place and starts a monitor beside each rank. Process groups have time-outs of
their own; a monitor also finds ranks that all stand still together, or wait where no collective is. It needs no
GPU.

Source: nvidia-resiliency-ext 0.7.0, fault_tolerance/rank_monitor_client.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable

_SOCKET = "FT_RANK_MONITOR_IPC_SOCKET"
"""The variable by which ft_launcher names a rank's monitor."""


def heartbeat() -> Callable[[], None]:
    """What to call after every step; does nothing where ft_launcher did not start this rank."""
    if _SOCKET not in os.environ:
        return lambda: None
    from nvidia_resiliency_ext.fault_tolerance import RankMonitorClient

    client = RankMonitorClient()
    client.init_workload_monitoring()
    beat: Callable[[], None] = client.send_heartbeat
    return beat

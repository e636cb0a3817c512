"""What ranks are forked from."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from training.host.environment import FORK_SERVER_VARIABLES, RANK_DEFAULTS

LOOK = """
import logging, os, sys
import training.host.warm_cluster, training.host.warm
import torch
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(len(names), names, torch.cuda.is_initialized())
print(logging.root.handlers, logging.root.level, "ray" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in Linux's /proc")
def test_it_has_one_thread_has_not_touched_a_gpu_and_has_not_set_up_logging() -> None:
    environment = {**os.environ, **RANK_DEFAULTS, **FORK_SERVER_VARIABLES}

    seen = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, timeout=300, check=True
    )

    assert seen.stdout == "1 ['python'] False\n[] 30 False\n"

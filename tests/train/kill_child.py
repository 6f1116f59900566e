"""A run that is killed at random places until it is done: what test_trainer.py looks at afterwards.

    kill_child.py FOLDER SEED        prints how often it was killed

Each attempt is a process of its own, forked after the imports, which take longest.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from train.trained import killed_run


def main(folder: Path, seed: int) -> None:
    draw, kills = random.Random(seed), 0
    while True:
        child = os.fork()
        if not child:
            killed_run(folder)
            os._exit(0)
        # Longer each time, so that a slow machine gets anywhere too.
        ends = time.monotonic() + draw.uniform(0.02, 0.25) * 1.8**kills
        while time.monotonic() < ends:
            if os.waitpid(child, os.WNOHANG)[0]:
                print(kills)
                return
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):  # it was done just before
            print(kills)
            return
        kills += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

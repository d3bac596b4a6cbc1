"""What tests give to processes elsewhere to do. It imports little: each of those processes imports it."""

import os
import signal
import subprocess
import time


def double(number: int) -> int:
    return 2 * number


def fail() -> None:
    raise ValueError("as it said")


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def hang_with_grandchild(pid_file: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    with open(pid_file, "w") as file:
        file.write(str(child.pid))
    time.sleep(600)


def bomb() -> int:
    return len(bytearray(8 << 30))

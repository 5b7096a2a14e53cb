"""Processes for which the kernel refuses system calls, as file systems that lack something do."""

import contextlib
import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys

import pytest
from conftest import ROOT

NUMBERS = {"x86_64": {"flock": 73, "mmap": 9}, "aarch64": {"flock": 32, "mmap": 222}}
SHARED = 1  # MAP_SHARED, in the fourth argument of mmap
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # of prctl
ALLOW, FAIL = 0x7FFF0000, 0x00050000  # of seccomp


def without(*names: str) -> None:
    """Take away `flock`, or the `mmap` of shared memory, from this process and its children."""
    numbers = NUMBERS[platform.machine()]
    steps = []

    def step(code, value, yes=0, no=0):
        steps.append(struct.pack("HBBI", code, yes, no, value))

    for name in names:
        step(0x20, 0)  # load the number of the call
        if name == "flock":
            step(0x15, numbers[name], 0, 1)  # if it is not this one, skip one step
            step(0x06, FAIL | errno.ENOLCK)
        else:
            step(0x15, numbers[name], 0, 3)
            step(0x20, 16 + 8 * 3)  # load the fourth argument
            step(0x45, SHARED, 0, 1)  # if the bit is not in it, skip one step
            step(0x06, FAIL | errno.ENODEV)
    step(0x06, ALLOW)
    code = ctypes.create_string_buffer(b"".join(steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(program)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(SECCOMP, FILTER, held, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp")


def python(*arguments, lacks=(), heeds=False, **environment) -> subprocess.CompletedProcess:
    """Run Python with arguments, in a process that lacks some system calls, or heeds permissions."""
    if lacks and platform.machine() not in NUMBERS:
        pytest.skip("no filter of system calls for this machine")
    before = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    before = before if heeds and os.geteuid() == 0 else []  # which root does not, by these
    return subprocess.run(
        [*before, sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        check=False,
        preexec_fn=(lambda: without(*lacks)) if lacks else None,
    )


@contextlib.contextmanager
def read_only(folder, size="1m", *, writable=False):
    """Yield a way to run Python where a folder is a small disk that cannot be written to."""
    mode = "rw" if writable else "ro"
    shell = (
        f"mount -t tmpfs -o size={size} none {folder} && cp -a {folder}.real/. {folder} && "
        f'mount -o remount,{mode} {folder} && exec "$@"'
    )
    command = ["unshare", "-m", "sh", "-c", shell, "sh"]
    real = folder.with_name(f"{folder.name}.real")
    folder.rename(real)
    folder.mkdir()
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")

    def run(*arguments) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    yield run

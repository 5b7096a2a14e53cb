"""A command that is killed between what it does to files, at each place once, and given again."""

import os
from pathlib import Path

CALLS = ("replace", "link", "unlink")  # of `os`: what makes files appear and go
KILLED = 77


def run_until(number, command):
    """Run a command in a process of its own that dies before its n-th change; its exit code."""
    if (pid := os.fork()) == 0:
        left = [number]

        def dying(real):
            def call(*args, **options):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(KILLED)
                return real(*args, **options)

            return call

        code = 99
        try:
            for name in CALLS:
                setattr(os, name, dying(getattr(os, name)))
            code = command()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(folder):
    """The files of a folder and what is in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def check_every_kill(fresh, command, output, files):
    """Kill a command at each of its changes, twice; then the same command ends it.

    Args:
        fresh: Makes the folder anew, and returns it.
        command: Runs in this folder, and returns the exit code.
        output: Its output, there only once all is.
        files: What it leaves, of which no byte depends on a kill.

    Returns:
        How many places there were.
    """
    folder = fresh()
    code = command()
    expected = contents(folder)
    assert code in (0, 1)
    assert set(files) <= set(expected)
    expected = {name: expected[name] for name in files}
    number = 0
    while True:
        number += 1
        folder = fresh()
        if run_until(number, command) != KILLED:
            return number - 1
        for _ in range(2):
            found = contents(folder)
            if output in found:  # then nothing is left to be done
                assert {name: found.get(name) for name in files} == expected
                break
            assert run_until(number, command) in (KILLED, code)
        else:
            if output not in contents(folder):
                assert command() == code, contents(folder)
            found = contents(folder)
            assert {name: found.get(name) for name in files} == expected
            assert not [name for name in found if name.endswith(".part")]

"""Programs that start at once: forked from a process that has imported what they import.

To import vLLM or LLaMA-Factory takes ten seconds of a core, and our tests start them twenty times.

    program = ready("vllm", folder).start("vllm.entrypoints.openai.api_server", arguments, log)

One such process serves all processes of a test run and ends with the last of them; a program ends
with who started it. Nothing that a test says of a process of its own may be said of such a one.
"""

import atexit
import contextlib
import fcntl
import functools
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from multiprocessing.connection import Client, Listener, wait
from pathlib import Path

IMPORTS = {
    "vllm": (
        *("vllm.entrypoints.openai.api_server", "vllm.v1.engine.core"),
        *("vllm.v1.worker.cpu_worker", "vllm.v1.executor.uniproc_executor"),
    ),
    "llamafactory": ("llamafactory.train.tuner",),
}


def once(folder, name, make):
    """Return what `make()` returned in the first process of this test run that asked for it."""
    place = Path(folder) / f"{name}.json"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            place.write_text(json.dumps(make()))
        return json.loads(place.read_text())


class Started:
    """A program at work, as a Popen of `subprocess`."""

    def __init__(self, connection):
        self._connection, self._code = connection, None
        self.pid = connection.recv()

    def poll(self, seconds=0.0):
        """Return its exit code, None as long as there is none."""
        if self._code is None and self._connection.poll(seconds):
            self._code = self._connection.recv()
            self._connection.close()
        return self._code

    def wait(self, seconds=600.0):
        """Return its exit code, when it has one."""
        if self.poll(seconds) is None:
            raise subprocess.TimeoutExpired(str(self.pid), seconds)
        return self._code

    def end(self):
        """End it, and all that is in its session."""
        for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, None)):
            kill(self.pid, number)
            if self.poll(seconds) is not None:
                return


class Ready:
    """The process that starts them, which lives as long as somebody is connected to it."""

    def __init__(self, address):
        self.address, self._alive = address, Client(address)

    def start(self, module, arguments, log, *, lasting=False, **environment):
        """Start `python -m MODULE ARGUMENTS` in a session of its own; what it says is in a file.

        Args:
            lasting: Let it outlive this process, and end with the test run.
        """
        connection = Client(self.address)
        words = [module, *map(str, arguments)]
        connection.send((lasting, words, str(log), os.getcwd(), os.environ | environment))
        return Started(connection)

    def run(self, module, arguments, log):
        """Run it to its end; return its exit code and what it said."""
        code = self.start(module, arguments, log).wait()
        return code, Path(log).read_text(errors="replace")


@functools.cache
def ready(kind, folder):
    """Return the one of this kind that all processes of a run share, by a folder that they share."""

    # Read when it is imported, and no more by a program.
    read_early = {"VLLM_LOGGING_LEVEL": "WARNING", "HF_DATASETS_CACHE": f"{folder}/datasets"}

    def begin():
        command = [sys.executable, __file__, *IMPORTS[kind]]
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            start_new_session=True,
            env=os.environ | read_early,
        ).stdout

    try:
        return Ready(once(folder, kind, begin))
    except (OSError, EOFError):  # nobody was connected any more
        (Path(folder) / f"{kind}.json").unlink()
        return Ready(once(folder, kind, begin))


def main(modules):
    """Import, tell the address, and fork as asked, until nobody is connected any more."""
    told = os.dup(1)
    os.dup2(2, 1)  # whatever they say
    for name in modules:
        with contextlib.suppress(ModuleNotFoundError):  # of other versions
            importlib.import_module(name)
    if os.fork():  # who started it need not wait for its end
        os._exit(0)
    # vLLM has its engine import all that again where there is no GPU.
    get = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get("fork" if method == "spawn" else method)
    ended, end = os.pipe()
    os.set_blocking(end, False)
    signal.set_wakeup_fd(end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = Listener(backlog=16)
    os.write(told, listener.address.encode())
    os.close(told)
    coming = listener._listener._socket
    connected, programs = [listener.accept()], {}  # exit codes are told to whom, by pid
    while connected:
        for one in wait([coming, ended, *connected]):
            if one is coming:
                connected.append(listener.accept())
            elif one is ended:
                os.read(ended, 1000)
                reap(programs)
            else:
                try:
                    lasting, *job = one.recv()
                except (EOFError, OSError):
                    connected.remove(one)
                    one.close()
                    for pid in [pid for pid, other in programs.items() if other is one]:
                        kill(pid)
                    continue
                if not (pid := os.fork()):
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    become(one, *job)
                programs[pid] = None if lasting else one
    for pid in programs:
        kill(pid)


def kill(pid, number=signal.SIGKILL):
    """Kill a program and all of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def reap(programs):
    """Tell the exit codes of what has ended."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if one := programs.pop(found[0], None):
                with contextlib.suppress(OSError):  # it hung up
                    one.send(os.waitstatus_to_exitcode(found[1]))


def become(one, words, log, folder, environment):
    """Be a program from here to its end."""
    code = 1
    try:
        os.setsid()
        for stream, place in enumerate((os.devnull, log, log)):
            os.dup2(os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
        one.send(os.getpid())  # now its file is there
        os.closerange(3, 200)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = list(words)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])

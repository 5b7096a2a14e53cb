"""Ray's actors in this process: what `ray_replicas` does is tried without a cluster, in no time.

Replicas are the real ones. An actor that is lost fails its calls and is begun anew, as Ray does.
"""

import asyncio
import contextlib


class Ref:
    """A reference to a call, which goes on if who waits for it gives up."""

    def __init__(self, call):
        self._call = asyncio.ensure_future(call)

    def __await__(self):
        return asyncio.shield(self._call).__await__()

    def cancel(self):
        self._call.cancel()


class Method:
    """A method of a handle."""

    def __init__(self, handle, name):
        self._handle, self._name = handle, name

    def options(self, **_):
        return self

    def remote(self, *given):
        """Call it; of a stream, the parts can be gone through."""
        if self._name == "stream":
            return self._handle.parts(*given)
        return Ref(self._handle.run(self._name, *given))


class Handle:
    """Ray's handle of an actor."""

    def __init__(self, make):
        self._make = make
        self._replica, self._calls = make(), set()
        self.calls = []  # the names of all
        self.refuse_starts = []  # with these errors, one after another
        self.killed = False

    def __getattr__(self, name):
        return Method(self, name)

    async def run(self, name, *given):
        self.calls.append(name)
        if name == "start" and self.refuse_starts:
            raise self.refuse_starts.pop(0)
        call = asyncio.ensure_future(getattr(self._replica, name)(*given))
        lost = asyncio.get_running_loop().create_future()
        self._calls.add(lost)
        try:
            await asyncio.wait([call, lost], return_when=asyncio.FIRST_COMPLETED)
            return lost.result() if lost.done() else call.result()
        finally:
            self._calls.discard(lost)
            call.cancel()

    async def parts(self, *given):
        stream = self._replica.stream(*given)
        lost = asyncio.get_running_loop().create_future()
        self._calls.add(lost)
        try:
            while True:
                part = asyncio.ensure_future(anext(stream, None))
                await asyncio.wait([part, lost], return_when=asyncio.FIRST_COMPLETED)
                if lost.done() and not lost.exception():
                    part.cancel()
                    return
                if not lost.done() and part.result() is None:
                    return
                yield lost if lost.done() else part
        finally:
            self._calls.discard(lost)

    def lose(self, error):
        """Have its process end: all calls fail (without an error: end), and another one begins."""
        self._replica = self._make()
        for lost in self._calls:
            with contextlib.suppress(asyncio.InvalidStateError):
                lost.set_exception(error) if error else lost.set_result(None)


class Here:
    """Stands in for Ray.

    Attributes:
        handles: Of all actors.
        options: That they were made with.
    """

    def __init__(self):
        self.handles, self.options = [], {}

    def remote(self, kind):
        def options(**given):
            self.options = given
            return Made(self, kind)

        made = Made(self, kind)
        made.options = options
        return made

    def kill(self, handle):
        handle.killed = True

    def cancel(self, ref):
        ref.cancel()


class Made:
    """An actor's class."""

    def __init__(self, here, kind):
        self._here, self._kind = here, kind

    def remote(self, *given):
        self._here.handles.append(Handle(lambda: self._kind(*given)))
        return self._here.handles[-1]

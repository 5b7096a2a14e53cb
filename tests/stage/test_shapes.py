"""A server's name for a model is not looked up on the hub. Run: pytest tests/stage/test_shapes.py"""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aft_factory.engines.sampling import Usage
from aft_factory.inference.accounting import ModelShape
from aft_factory.stage.totals import Totals
from aft_factory.stage.writing import JobFiles


@pytest.fixture
def hub():
    """A hub that has nothing; returns (its address, what was asked of it)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.parametrize("here", [True, False])
def test_a_name_is_looked_for_on_this_machine_only_where_it_may_be_none_of_the_hubs(hub, here):
    address, asked = hub
    code = (
        "from aft_factory.inference.accounting import ModelShape\n"
        "from aft_factory.errors import UsageError\n"
        f"try: ModelShape.load('org/served', here={here})\n"
        "except UsageError as error: print(error)\n"
    )
    more = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True
    )
    assert "cannot load the shape of the model 'org/served'" in done.stdout
    assert any("org/served" in path for path in asked) != here


def test_that_is_a_server_s_name_of_a_proposer(monkeypatch):
    looked = {}

    def load(name, *, here=False, **_):
        looked[name] = here
        return ModelShape(1, 1, 1)

    monkeypatch.setattr(ModelShape, "load", load)

    class Stage:
        strategy, options = None, {}

    files = JobFiles.__new__(JobFiles)
    files.shapes, files.stage = ("me/own", None), Stage
    totals = Totals(by_model={"": Usage(), "org/other": Usage()})
    monkeypatch.setattr(Totals, "flops", lambda *_: {})
    files.flops_of(totals, None, {})
    assert looked == {"me/own": False, "org/other": True}

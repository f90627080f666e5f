"""A worker process and its session: calls, failures, streams, and what user code may do."""

import pytest
from worker_fixtures import call, eventually, invoke, items_until_quiet, link_of, outcome, receive, session, started

from flashmesh.functions.errors import NotEncodable, RemoteError, TimedOut, ValidationError
from flashmesh.wire.frames import JSON, Chunk, Credit, Error, Invoke, Result, Started

BASIC = """
    import asyncio, os, sys
    from flashmesh import LiveServerless, remote

    resource = LiveServerless(name="own")

    class Unlucky(Exception):
        def __init__(self, number):
            super().__init__(f"number {number}")
            self.number = number

    @remote(resource)
    def echo(x):
        return x

    @remote(resource)
    async def later(x: int):
        await asyncio.sleep(0)
        return x + 1

    @remote(resource)
    def typed(n: int, name: str = "you"):
        return f"{name} {n}"

    @remote(resource)
    def fail(number):
        raise Unlucky(number)

    @remote(resource)
    async def passes_on():
        from flashmesh.functions.errors import TimedOut
        raise TimedOut("what it called took too long")

    @remote(resource)
    def forks():
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return child

    @remote(resource)
    def leave(code):
        sys.exit(code)

    @remote(resource)
    def own_loop():
        async def body():
            await asyncio.sleep(0)
            return asyncio.get_running_loop() is not None
        return asyncio.run(body())

    @remote(resource)
    def gives_coroutine(x):
        return later.__flash__.target(x)

    @remote(resource)
    def odd():
        return object()

    @remote(resource)
    def cancels_itself():
        raise asyncio.CancelledError

    @remote(resource)
    def calls_sibling(x):
        return echo.call(x), os.getpid()

    @remote(resource)
    def nothing():
        pass
    """


def test_a_worker_says_hello_and_ready_and_runs_calls() -> None:
    """HELLO and READY come first; a call is STARTED, then its RESULT says how many slots are free."""
    with session() as here:
        worker = here.worker(BASIC, dial=False)
        worker.link, hello, ready = here.accept()
        assert (hello.role, hello.endpoint, hello.build) == ("worker", "own", worker.spec.build)
        assert hello.pid == worker.process.pid
        assert ready.free == 1
        invoke(worker, "own.echo", {"a": [1, b"x"]})
        first, second = link_of(worker).receive(20), link_of(worker).receive(20)
        assert isinstance(first, Started)
        assert isinstance(second, Result)
        assert (first.worker, first.cold, second.free, second.items) == (hello.worker, True, 1, -1)
        assert call(worker, "own.later", 2) == 3
        assert call(worker, "own.echo", "again") == "again"
        assert call(worker, "own.nothing") is None
        assert worker.record.head().calls == 4


def test_json_bodies_are_mapped_and_results_are_encoded_as_accepted() -> None:
    """The payload is what the client sent; the worker decides what it means."""
    with session() as here:
        worker = here.worker(BASIC)
        body = b'{"input": {"n": "3", "name": "me"}}'
        link_of(worker).send(Invoke("e1", "own.typed", content_type=JSON, accept=JSON, payload=b'{"input": {"n": 3}}'))
        assert receive(worker, Result).payload == b'"you 3"'
        link_of(worker).send(Invoke("e2", "own.typed", content_type=JSON, accept=JSON, payload=body))
        answer = outcome(worker, execution="e2")
        assert answer == "me 3" or isinstance(answer, ValidationError)


def test_a_users_exception_arrives_with_its_type_and_traceback() -> None:
    """The failure names the class and begins at the user's line; the worker goes on."""
    with session() as here:
        worker = here.worker(BASIC)
        invoke(worker, "own.fail", 7)
        error = receive(worker, Error)
        assert (error.code, error.ran, error.free) == ("USER_ERROR", True, 1)
        invoke(worker, "own.fail", 7)
        raised = outcome(worker)
        assert isinstance(raised, RemoteError)
        assert raised.type_name == "own.Unlucky"
        assert raised.remote_traceback.splitlines()[1].strip().startswith('File "' + str(here.folder / "own.py"))
        assert call(worker, "own.echo", 1) == 1


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        ("own.leave", (3,), "sys.exit(3)"),
        ("own.cancels_itself", (), "asyncio.CancelledError"),
    ],
)
def test_what_would_end_the_worker_is_a_failure_of_that_call_only(
    function: str, arguments: tuple[int], says: str
) -> None:
    """SystemExit and CancelledError in user code end neither the worker nor the caller."""
    with session() as here:
        worker = here.worker(BASIC)
        raised = call(worker, function, *arguments)
        assert isinstance(raised, RemoteError)
        assert says in str(raised)
        assert call(worker, "own.echo", 1) == 1


def test_arguments_that_do_not_fit_are_refused_before_the_body() -> None:
    """The failure names the argument and says that nothing ran."""
    with session() as here:
        worker = here.worker(BASIC)
        link_of(worker).send(Invoke("e1", "own.typed", payload=b'{"input": {"n": "many"}}'))
        error = receive(worker, Error)
        assert (error.code, error.ran, error.free) == ("VALIDATION_ERROR", False, 1)
        link_of(worker).send(Invoke("e2", "own.typed", payload=b"{nonsense"))
        assert receive(worker, Error).code == "MALFORMED_REQUEST"
        link_of(worker).send(Invoke("e3", "own.absent", payload=b"{}"))
        assert receive(worker, Error).code == "FUNCTION_NOT_FOUND"


def test_a_child_that_user_code_forks_does_not_become_a_second_worker() -> None:
    """Its return from the function is its end; the worker itself answers, once."""
    with session() as here:
        worker = here.worker(BASIC)
        assert call(worker, "own.forks") > 0
        assert call(worker, "own.echo", 1) == 1


def test_the_end_of_a_call_that_user_code_made_is_not_its_own_end() -> None:
    """A TimedOut that user code lets through is an exception like any other: not this call's TIMEOUT."""
    with session() as here:
        worker = here.worker(BASIC)
        assert isinstance(call(worker, "own.passes_on"), TimedOut)
        invoke(worker, "own.passes_on")
        assert receive(worker, Error).code == "USER_ERROR"


def test_a_result_that_cannot_be_sent_names_its_type() -> None:
    """The body ran, its value cannot travel."""
    with session() as here:
        worker = here.worker(BASIC)
        raised = call(worker, "own.odd")
        assert isinstance(raised, NotEncodable)
        assert "object" in str(raised)


def test_synchronous_code_may_run_a_loop_of_its_own_and_return_coroutines() -> None:
    """No loop runs as far as a synchronous body can tell; an awaitable it returns is awaited."""
    with session() as here:
        worker = here.worker(BASIC)
        assert call(worker, "own.own_loop") is True
        assert call(worker, "own.gives_coroutine", 4) == 5


def test_a_call_of_the_endpoints_own_function_stays_in_the_process() -> None:
    """Siblings run locally, without the session."""
    with session() as here:
        worker = here.worker(BASIC)
        assert call(worker, "own.calls_sibling", 5) == [5, worker.process.pid]


def test_asynchronous_calls_run_at_the_same_time_up_to_the_limit() -> None:
    """Two calls meet inside one worker; a third finds no slot, is BUSY, and certainly was not run."""
    source = """
        import asyncio
        from pathlib import Path
        from flashmesh import LiveServerless, remote
        together = asyncio.Barrier(2)

        @remote(LiveServerless(name="own"))
        async def meet(go):
            await together.wait()
            while not Path(go).exists():
                await asyncio.sleep(0.001)
            return go
        """
    with session() as here:
        go = here.folder / "go"
        worker = here.worker(source, config={"max_concurrency": 2})
        invoke(worker, "own.meet", str(go), execution="a")
        assert started(worker, "a")
        link_of(worker).send(Credit("nobody", items=1))  # a credit for a call that is over changes nothing
        invoke(worker, "own.meet", str(go), execution="b")
        invoke(worker, "own.meet", str(go), execution="c")
        error = receive(worker, Error)
        assert (error.execution, error.code, error.ran) == ("c", "BUSY", False)
        go.touch()
        assert receive(worker, Result).free in (1, 2)
        assert receive(worker, Result).free == 2


def test_a_large_argument_and_result_pass_in_pieces() -> None:
    """Payloads beyond one frame arrive whole."""
    with session() as here:
        worker = here.worker(BASIC)
        big = b"x" * 3_000_000
        assert call(worker, "own.echo", big) == big


# --- streams ---

STREAMS = """
    import asyncio
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="own")
    closed = []

    @remote(resource)
    def count(n):
        try:
            for i in range(n):
                yield i
        finally:
            closed.append("count")

    @remote(resource)
    async def count_async(n):
        try:
            for i in range(n):
                yield i
        finally:
            closed.append("count_async")

    @remote(resource)
    def breaks(n):
        yield from range(n)
        raise ValueError("after the items")

    @remote(resource)
    def big():
        for _ in range(10):
            yield b"x" * 200_000

    @remote(resource)
    def closed_by_now():
        return closed

    @remote(resource)
    def returns_generator(n):
        return (i * i for i in range(n))
    """


@pytest.mark.parametrize("function", ["own.count", "own.count_async"])
def test_a_generator_runs_no_further_ahead_than_its_credits(function: str) -> None:
    """64 items come, then as many as are granted; the end says how many there were."""
    with session() as here:
        worker = here.worker(STREAMS)
        invoke(worker, function, 100, meta={"stream": True})
        assert items_until_quiet(worker) == list(range(64))
        link_of(worker).send(Credit("e1", items=10))
        assert items_until_quiet(worker) == list(range(64, 74))
        link_of(worker).send(Credit("e1", items=64))
        result = receive(worker, Result)
        assert (result.items, result.payload, result.free) == (100, b"", 1)


def test_large_items_close_the_window_by_their_size() -> None:
    """256 KiB ahead is the most, but for the item that exceeds it."""
    with session() as here:
        worker = here.worker(STREAMS)
        invoke(worker, "own.big", meta={"stream": True})
        assert len(items_until_quiet(worker)) == 2


@pytest.mark.parametrize("function", ["own.count", "own.count_async"])
def test_a_generator_that_nobody_streams_answers_the_list(function: str) -> None:
    """All items as one value, the empty list included."""
    with session() as here:
        worker = here.worker(STREAMS)
        assert call(worker, function, 200) == list(range(200))
        assert call(worker, function, 0) == []
        assert call(worker, "own.returns_generator", 3) == [0, 1, 4]
        invoke(worker, "own.count", 3, accept=JSON)
        assert receive(worker, Result).payload == b"[0,1,2]"


def test_a_list_beyond_its_bound_says_to_stream() -> None:
    """10 000 items are the most in one answer."""
    with session() as here:
        worker = here.worker(STREAMS)
        raised = call(worker, "own.count", 10_001)
        assert "Stream it" in str(raised)
        assert call(worker, "own.closed_by_now") == ["count"]


def test_an_exception_after_items_comes_after_the_items() -> None:
    """What was yielded arrives, then the failure."""
    with session() as here:
        worker = here.worker(STREAMS)
        invoke(worker, "own.breaks", 2, meta={"stream": True})
        assert receive(worker, Chunk).item
        assert receive(worker, Chunk).item
        raised = outcome(worker)
        assert isinstance(raised, ValueError)


# --- classes and start-up ---

CLASSES = """
    import asyncio
    from flashmesh import LiveServerless, remote, worker_start
    resource = LiveServerless(name="own")
    made, hooks = [], []

    @worker_start
    def first():
        hooks.append(asyncio.run(asyncio.sleep(0, "first")))

    @worker_start(resource)
    async def second():
        await asyncio.sleep(0)
        hooks.append("second")

    @remote(resource)
    class Counter:
        def __init__(self, start: int = 0):
            made.append(start)
            self.n = start
        def inc(self, by=1):
            self.n += by
            return self.n
        async def get(self):
            return self.n
        @staticmethod
        def plain(x):
            return x

    @remote(resource)
    class Model:
        def __init__(self):
            made.append("model")
        async def __aenter__(self):
            await asyncio.sleep(0)
            made.append("set up")
            return self
        def infer(self, x):
            return x * 2

    @remote(resource)
    class Broken:
        def __init__(self):
            raise RuntimeError("no model file")
        def infer(self):
            return 1

    @remote(resource)
    def told():
        return [made, hooks]
    """


def test_a_class_has_one_instance_per_worker_and_constructor_arguments() -> None:
    """State stays between calls and methods; other arguments are another instance."""
    with session() as here:
        worker = here.worker(CLASSES)
        assert call(worker, "own.Counter.inc", 2, init=((5,), {})) == 7
        assert call(worker, "own.Counter.get", init=((5,), {})) == 7
        assert call(worker, "own.Counter.inc", init=((), {})) == 1
        assert call(worker, "own.Counter.inc") == 2
        assert call(worker, "own.Counter.plain", 9, init=((5,), {})) == 9
        assert call(worker, "own.told")[0] == ["model", "set up", 5, 0]


def test_constructor_arguments_that_do_not_fit_are_refused_before_the_constructor() -> None:
    """They are the caller's mistake, like any other argument."""
    with session() as here:
        worker = here.worker(CLASSES)
        assert isinstance(call(worker, "own.Counter.inc", init=((1, 2, 3), {})), ValidationError)
        assert call(worker, "own.told")[0] == ["model", "set up"]


def test_hooks_and_argumentless_classes_are_done_before_ready() -> None:
    """`@worker_start` functions run in order, sync and async, and may use a loop of their own."""
    with session() as here:
        worker = here.worker(CLASSES)
        assert call(worker, "own.told") == [["model", "set up"], ["first", "second"]]
        assert call(worker, "own.Model.infer", 4) == 8


def test_a_constructor_that_fails_fails_the_calls_that_need_it() -> None:
    """The worker starts all the same, and says why at the call."""
    with session() as here:
        worker = here.worker(CLASSES)
        raised = call(worker, "own.Broken.infer")
        assert isinstance(raised, RuntimeError)
        assert "no model file" in str(raised)
        assert call(worker, "own.Counter.inc") == 1


def test_a_hook_that_fails_keeps_the_worker_from_starting() -> None:
    """The process ends with an error and its output says why."""
    source = """
        from flashmesh import LiveServerless, remote, worker_start

        @worker_start
        def connect():
            raise ConnectionError("the database does not answer")

        @remote(LiveServerless(name="own"))
        def f(): ...
        """
    with session() as here:
        worker = here.worker(source, dial=False)
        assert worker.exit_status() == 1
        assert "the database does not answer" in worker.said()


def test_the_record_shows_what_runs() -> None:
    """Deadline, function and execution are there for the template while the body runs."""
    source = """
        import asyncio
        from flashmesh import LiveServerless, remote

        @remote(LiveServerless(name="own"))
        async def wait():
            await asyncio.Event().wait()
        """
    with session() as here:
        worker = here.worker(source)
        invoke(worker, "own.wait", deadline_ms=60_000)
        assert started(worker)
        running = eventually(lambda: worker.record.running())[0]
        assert (running.execution, running.function) == ("e1", "own.wait")
        assert running.deadline_ns - running.started_ns > 50_000_000_000
        assert worker.record.head().free == 0

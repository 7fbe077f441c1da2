"""The pytest plugin, in a pytest of its own: what each fixture does, beside anyio's and looptime's plugins."""

import subprocess
import sys

import pytest

pytest_plugins = ("pytester",)

PLUGINS = ("-p", "anyio.pytest_plugin", "-p", "llmprod.testing.plugin")


@pytest.fixture
def run(pytester, monkeypatch):
    # Without entry points: what they bring depends on what is installed beside us, and on how.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(code, *arguments, ini="", plugins=PLUGINS):
        pytester.makeini(f"[pytest]\nfilterwarnings = error\n{ini}")
        pytester.makepyfile(code)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *plugins, *arguments, timeout=240)

    return run


ASYNC = "anyio_mode = auto\n"


def test_the_fixtures_of_a_synchronous_test(run):
    run(
        """
        from llmprod import AsyncClient, Client, Overloaded, RateLimited
        from llmprod.testing import Behaviour, ErrorReply, Toxics

        def test_scripted(scripted, no_waits):
            model = scripted(Overloaded(), RateLimited(retry_after=40), "Hello")
            with Client(model, clock=no_waits) as client:
                assert client.generate("Hi").text == "Hello"
            assert len(no_waits.waits) == 2 and model.calls == 3

        def test_fault_server(fault_server):
            fault_server.behave([Behaviour(error=ErrorReply(status=503)), Behaviour()])
            with Client(f"openai:m@{fault_server.url}/v1") as client:
                assert client.generate("Hi").complete
            assert fault_server.request_count == 2

        def test_fault_proxy(fault_server, fault_proxy):
            fault_proxy.downstream = Toxics(latency=0.05)
            with Client(f"openai:m@{fault_proxy.url}/v1") as client:
                assert client.generate("Hi").timing.total > 0.05
            assert fault_proxy.connections == 1 and fault_server.request_count == 1
        """
    ).assert_outcomes(passed=3)


def test_what_a_scripted_provider_leaves_behind_is_an_error(run):
    result = run(
        """
        from llmprod import AsyncClient
        import pytest

        async def test_it(scripted):
            async with AsyncClient(scripted(["a", "b"])) as client:
                pytest.kept = [*getattr(pytest, "kept", []), await client.stream("Hi")]

        @pytest.fixture(scope="session", autouse=True)
        def close_in_the_end():
            yield
            for response in pytest.kept:
                response._settle("closed")
        """,
        ini=ASYNC,
    )
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["*scripted: 1 calls are in flight and 1 streams open after the test*"])


VIRTUAL = """
    import time
    import anyio, pytest
    from llmprod import AsyncClient, RateLimited

    async def test_minutes(virtual_time, scripted):
        started = time.monotonic()
        model = scripted(RateLimited(retry_after=50), [200, "Hello"])
        async with AsyncClient(model, clock=virtual_time) as client:
            response = await client.generate("Hi")
        assert 250 <= response.timing.total < 260
        assert time.monotonic() - started < 120

    @pytest.mark.parametrize("seconds", [10, 20])
    async def test_beside_other_parameters(virtual_time, seconds):
        before = virtual_time.now()
        await anyio.sleep(seconds)
        assert virtual_time.now() - before == seconds

    async def test_in_real_time():
        started = time.monotonic()
        await anyio.sleep(0.05)
        assert time.monotonic() - started > 0.04

    def test_synchronous():
        pass
"""


def test_virtual_time_on_asyncio_alone_by_default(run):
    result = run(VIRTUAL, "-v", ini=ASYNC)
    result.assert_outcomes(passed=3 + 2 + 1)
    result.stdout.fnmatch_lines(["*test_minutes?asyncio?*", "*test_beside_other_parameters?10-asyncio?*"])


def test_virtual_time_on_both(run):
    run(VIRTUAL, ini=ASYNC + "llmprod_backends = asyncio trio").assert_outcomes(passed=6 + 2 + 1)


def test_virtual_time_of_a_whole_module_with_marks(run):
    run(
        """
        import anyio, pytest
        pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

        class TestIt:
            async def test_one(self):
                await anyio.sleep(3600)

        async def test_two(anyio_backend_name):
            await anyio.sleep(3600)
            assert anyio_backend_name == "trio"
        """,
        ini="llmprod_backends = trio",
    ).assert_outcomes(passed=2)


def test_virtual_time_over_a_conftest_of_its_own(run, pytester):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def anyio_backend():
            return "asyncio"
        """
    )
    run(VIRTUAL, ini=ASYNC + "llmprod_backends = asyncio trio").assert_outcomes(passed=6 + 1 + 1)


def test_virtual_time_in_a_synchronous_test_says_what_to_do(run):
    result = run("def test_it(virtual_time): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*virtual_time is for async tests*run_virtual*"])


def test_virtual_time_without_its_package_says_which(run, pytester):
    pytester.makeconftest("import sys; sys.modules['looptime'] = None")
    result = run(VIRTUAL, ini=ASYNC)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*virtual time on asyncio needs looptime: pip install looptime*"])


def test_beside_looptimes_own_plugin(run, pytester):
    # Loaded by its entry point it has this name.
    pytester.makeconftest(
        """
        import looptime._internal.plugin
        import pytest

        def pytest_addoption(parser, pluginmanager):
            pluginmanager.register(looptime._internal.plugin, "looptime_plugin")

        @pytest.fixture
        def plain():
            return 1
        """
    )
    code = VIRTUAL + "\n    def test_plain(plain):\n        assert plain == 1\n"
    run(code, ini=ASYNC).assert_outcomes(passed=7)


REACH = """
    import socket
    import pytest
    from llmprod import AllTargetsFailed, Client, Static
    from llmprod.testing import FaultServer

    def test_swallowed():
        with Client("openai:gpt-5", fallbacks=[Static("Sorry.")], api_key="k") as client:
            assert client.generate("Hi").text == "Sorry."

    def test_raised():
        with Client("openai:gpt-5", api_key="k") as client:
            client.generate("Hi")

    def test_an_address():
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=1)
        except Exception:
            pass

    def test_here():
        with FaultServer() as server, Client(f"openai:m@{server.url}/v1") as client:
            assert client.generate("Hi").complete

    @pytest.mark.llmprod_network
    def test_marked():
        with pytest.raises(OSError):
            socket.create_connection(("192.0.2.1", 80), timeout=0.01)
"""


def test_a_test_that_reaches_out_fails(run):
    result = run(REACH, ini="llmprod_no_network = true")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(["*this test wants to reach api.openai.com*", "*wanted to reach 192.0.2.1*"])


def test_allowed_hosts(run):
    code = """
    import socket

    def test_it():
        for host in ("a.example.invalid", "192.0.2.1"):
            try:
                socket.create_connection((host, 80), timeout=0.01)
            except OSError:
                pass
    """
    ini = "llmprod_no_network = true\nllmprod_allow_hosts = "
    run(code, ini=ini + "*.example.invalid 192.0.2.*").assert_outcomes(passed=1)
    run(code, ini=ini + "*.example.invalid").assert_outcomes(failed=1)
    run(code, ini=ini + "192.0.2.1").assert_outcomes(failed=1)


def test_the_guard_as_a_fixture(run):
    result = run(
        """
        import socket
        import pytest

        def test_with(no_network):
            with pytest.raises(AssertionError, match="wants to reach example.invalid"):
                socket.getaddrinfo("example.invalid", 80)
            assert no_network.attempts == ["example.invalid"]
            no_network.attempts.clear()

        def test_without():
            with pytest.raises(OSError):
                socket.create_connection(("192.0.2.1", 80), timeout=0.01)

        @pytest.fixture
        def reaches():
            socket.getaddrinfo("example.invalid", 80)

        def test_fixtures_are_guarded(no_network, reaches):
            pass
        """
    )
    result.assert_outcomes(passed=2, errors=1)


def test_it_imports_nothing_until_used():
    code = """
import sys
import pytest
before = set(sys.modules)
import llmprod.testing.plugin
new = {name for name in set(sys.modules) - before if "." not in name or name.startswith("llmprod")}
assert new <= {"llmprod", "llmprod.testing", "llmprod.testing.plugin"}, new
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_flat_names():
    import llmprod.testing as flat

    assert dir(flat) == flat.__all__
    assert all(getattr(flat, name) is not None for name in flat.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flat.nothing

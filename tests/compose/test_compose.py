"""docker-compose.yml, built and run for real, and called from outside."""

import json
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest

from polyhead.client import Client
from tests import bundles
from tests.compose import engine

pytestmark = pytest.mark.compose

SCRAPED_SECONDS = 60
OURS = 'sum by (method) (polyhead_requests_total{code="OK", method=~"Generate|Classify|Embed"})'
INSTALLED_MEGABYTES = 300
INSTALLED = """
import importlib.util, json, pathlib, sysconfig
files = [path for path in pathlib.Path(sysconfig.get_path("purelib")).rglob("*") if path.is_file()]
modules = ("torch", "transformers", "pip")
print(json.dumps({
    "bytes": sum(path.stat().st_size for path in files),
    "there": [name for name in modules if importlib.util.find_spec(name)],
}))
"""


@pytest.fixture(scope="module")
def project() -> Iterator[engine.Project]:
    """Server and Prometheus on free ports. Prometheus waits for a healthy server, so `up` returns with one.

    Without an engine the tests are skipped, or, as `make test-compose` wants it, the run fails.
    """
    if reason := engine.missing():
        if os.environ.get("COMPOSE_REQUIRED"):
            pytest.exit(f"nothing was tested: {reason}", returncode=1)
        pytest.skip(reason)
    environment = {
        "POLYHEAD_MODELS": str(bundles.models_folder()),
        "POLYHEAD_PORT": "0",
        "POLYHEAD_METRICS_PORT": "0",
        "POLYHEAD_CPUS": str(min(2, os.cpu_count() or 1)),
        "PROMETHEUS_PORT": "0",
    }
    with engine.up(f"polyhead-test-{os.getpid()}", environment) as project:
        yield project


@pytest.fixture(scope="module")
def client(project: engine.Project) -> Iterator[Client]:
    with Client(project.address("server", 50051), timeout=30) as client:
        yield client


def test_the_server_is_healthy_and_serves_every_model(project: engine.Project, client: Client) -> None:
    health = project.container("server").state()["Health"]
    assert isinstance(health, dict)
    assert health["Status"] == "healthy"
    assert {model.name: model.state for model in client.models()} == dict.fromkeys(
        (bundles.GENERATOR, bundles.CLASSIFIER, bundles.EMBEDDER), "ready"
    )


def test_the_three_endpoints_answer_from_outside_and_prometheus_counts_them(
    project: engine.Project, client: Client
) -> None:
    answer = client.generate("the cat", max_tokens=5, ignore_eos=True).result()
    scores = client.classify("the cat sat").results[0].labels
    vectors = client.embed(["the cat", "the dog", "the mat"]).embeddings

    assert len(answer.token_ids) == 5
    assert sum(score.score for score in scores) == pytest.approx(1, abs=1e-5)
    assert [len(vector) for vector in vectors] == [bundles.EMBEDDING_SIZE] * 3

    expected = {"Generate": 1.0, "Classify": 1.0, "Embed": 1.0}
    prometheus = project.address("prometheus", 9090)
    assert eventually_scraped(prometheus, OURS, expected) == expected


def test_the_container_has_no_root_no_capability_and_no_writable_image(project: engine.Project) -> None:
    server = project.container("server")
    assert server.run("id", "-u") == "65532"
    status = dict(line.split(":\t", 1) for line in server.run("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert (int(status["CapEff"], 16), status["NoNewPrivs"]) == (0, "1")
    for path in ("/written", "/models/written", "/opt/polyhead/written"):
        with pytest.raises(RuntimeError, match="Read-only file system"):
            server.run("touch", path)


def test_the_image_has_neither_torch_nor_pip_and_its_packages_are_small(project: engine.Project) -> None:
    installed = json.loads(project.container("server").run("python", "-c", INSTALLED))
    assert installed["there"] == []
    assert 50 < installed["bytes"] / 1e6 < INSTALLED_MEGABYTES


def test_a_stopped_server_ends_with_exit_code_0(project: engine.Project, client: Client) -> None:
    server = project.container("server")
    project.compose("stop", "server")
    assert (server.state()["Status"], server.state()["ExitCode"]) == ("exited", 0)
    project.compose("start", "server")


def eventually_scraped(prometheus: str, query: str, expected: dict[str, float]) -> dict[str, float]:
    """The values of a query by `method` once they are the expected ones, or the last ones when time is over."""
    give_up = time.monotonic() + SCRAPED_SECONDS
    url = f"http://{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    values: dict[str, float] = {}
    while values != expected and time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                result = json.load(response)["data"]["result"]
        except OSError:  # Prometheus is still starting
            result = []
        values = {series["metric"]["method"]: float(series["value"][1]) for series in result}
        time.sleep(0.2)  # a scrape is 5 s after the last one; nothing tells us of it
    return values

"""The OpenAPI document is what the API does: schemathesis sends what it allows, and what it forbids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

from trading_bot.entrypoints import openapi

from servers import OBSERVER, TOKEN, App, Nats, Redis

# A stream does not end by itself: test_stream.py follows it.
schema = schemathesis.openapi.from_dict(openapi.document("0.1.0")).exclude(path="/api/orders/stream")
# These would change what every other call is answered: sent only with a token that may not.
_SWITCHES = {"/api/trading/halt", "/api/degradation/enable", "/api/features/disable"}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    directory = tmp_path_factory.mktemp("contract")
    redis, nats = Redis(directory / "redis"), Nats(directory / "nats")
    redis.start()
    nats.start()
    app = App(directory / "app", redis.url, nats.url, extra="risk: {max_orders_per_second: 0}\n")
    app.start_ready()
    yield app
    for server in (app, nats, redis):
        server.kill()


@schema.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_answer_is_5xx_or_undocumented(case: Case, target: App) -> None:
    token = OBSERVER if case.path in _SWITCHES else TOKEN
    # A schema cannot say that a limit order needs a price: valid by the schema may still be 400, documented.
    case.call_and_validate(
        base_url=target.url,
        headers={"Authorization": f"Bearer {token}"},
        excluded_checks=[positive_data_acceptance],
    )


def test_every_route_is_in_the_document_and_the_reverse(app: App) -> None:
    document = app.call("GET", "/openapi.json", token=None)[1]
    for path, calls in document["paths"].items():
        concrete = path.replace("{client_order_id}", "none")
        status, answer, headers = app.call("PATCH", concrete)
        assert status == 405
        assert {word.lower() for word in headers["allow"].split(", ")} == set(calls)
        assert answer["type"].endswith("method-not-allowed")


def test_the_docs_page_names_every_path(app: App) -> None:
    text = app.call("GET", "/docs", token=None)[1]["text"]
    assert all(f"<code>{path}</code>" in text for path in openapi.PATHS)

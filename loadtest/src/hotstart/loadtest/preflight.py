"""One look at the server before a run, so that a wrong flag costs a sentence and not thirty seconds of failures."""

from typing import Any

import aiohttp
from hotstart.loadtest.plan import LoadPlan

_SECONDS = 10.0


class TargetUnfit(Exception):
    """The run cannot begin; the message is one sentence that names the flag."""


async def check_target(plan: LoadPlan) -> None:
    """Ask GET /v1/models whether the server is there and serves the model.

    Raises TargetUnfit naming --url, --header or --model.
    """
    known = await _gather_models(plan)
    if plan.model not in known:
        listed = ", ".join(sorted(known)) or "no model at all"
        raise TargetUnfit(f"--model {plan.model}: {plan.url} does not serve it; it serves {listed}")


async def _gather_models(plan: LoadPlan) -> set[str]:
    where = f"--url {plan.url}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS), headers=plan.headers) as session,
            session.get(plan.url + "/v1/models", allow_redirects=False) as response,
        ):
            if 300 <= response.status < 400 and "Location" in response.headers:
                raise TargetUnfit(
                    f"{where}: GET /v1/models is redirected to {response.headers['Location']}; no request of a run "
                    "follows redirects, so give the address that they lead to"
                )
            if response.status in (401, 403):
                raise TargetUnfit(f"--header: {plan.url} refuses us with {response.status}; give it an Authorization")
            if response.status != 200:
                raise TargetUnfit(
                    f"{where}: GET /v1/models answers {response.status}; is it the router's address? "
                    "(--no-check begins without asking)"
                )
            return _parse_models(await response.json(content_type=None), where)
    except (aiohttp.ClientConnectorDNSError, aiohttp.InvalidURL) as error:
        raise TargetUnfit(f"{where}: the name of the host cannot be resolved ({error})") from None
    except aiohttp.ClientConnectorError as error:
        cause = error.os_error.strerror or str(error.os_error)
        raise TargetUnfit(f"{where}: cannot connect ({cause}); is the server up and the port right?") from None
    except TimeoutError:
        raise TargetUnfit(f"{where}: no answer to GET /v1/models within {_SECONDS:g} s") from None
    except ValueError:
        raise TargetUnfit(f"{where}: GET /v1/models answers no JSON; is it the router's address?") from None
    except (aiohttp.ClientError, OSError) as error:
        raise TargetUnfit(f"{where}: GET /v1/models failed ({error or type(error).__name__})") from None


def _parse_models(parsed: Any, where: str) -> set[str]:
    data = parsed.get("data") if isinstance(parsed, dict) else None
    if not isinstance(data, list):
        raise TargetUnfit(f"{where}: GET /v1/models has no list of models; is it the router's address?")
    return {str(entry["id"]) for entry in data if isinstance(entry, dict) and "id" in entry}

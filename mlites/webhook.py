"""A JSON document posted to somebody's webhook, a few times if need be."""

from typing import Any
from urllib.parse import urlsplit

import urllib3

TRIES = 4
FIRST_WAIT_SECONDS = 1.0  # between the second try and the third; doubled after each one
TIMEOUT = urllib3.Timeout(connect=5, read=10)
AGAIN = (408, 429, 500, 502, 503, 504)


def post(address: str, body: dict[str, Any]) -> str | None:
    """Send the document; its address may hold a secret and is never told.

    Args:
        address: http:// or https://.
        body: sent as JSON.

    Returns:
        One line that says why it did not arrive; None if it did.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "not notified: the webhook's address must start with http:// or https://"
    again = urllib3.Retry(
        total=TRIES - 1,
        redirect=0,
        backoff_factor=FIRST_WAIT_SECONDS,
        status_forcelist=AGAIN,
        allowed_methods={"POST"},
        respect_retry_after_header=False,  # it may ask for hours
        raise_on_status=False,
        raise_on_redirect=False,
    )
    try:
        answer = urllib3.request("POST", address, json=body, timeout=TIMEOUT, retries=again)
    except urllib3.exceptions.HTTPError as error:
        kind = type(getattr(error, "reason", None) or error).__name__
        return f"not notified: {parts.hostname} does not answer ({kind})"
    if 200 <= answer.status < 300:
        return None
    return f"not notified: {parts.hostname} answered {answer.status}"

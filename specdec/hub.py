"""The Hugging Face hub: whether it can be reached, asked briefly at every load. Its own clients try for a minute."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request

from huggingface_hub import constants

SECONDS = 3  # until the hub counts as out of reach


def local_only() -> bool:
    """Whether nothing but files that were fetched before can be had."""
    return constants.HF_HUB_OFFLINE or not is_reachable()


def is_reachable() -> bool:
    """Whether the hub answers, whatever it says."""
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        return isinstance(getattr(error, "reason", error), ssl.SSLError)  # its clients may trust other certificates


def offline_message() -> str:
    """Why something is not there, and what to do."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it was not fetched before; give a local folder, or unset it"
    return (
        f"{constants.ENDPOINT} cannot be reached (offline?), and it was not fetched before; give a local folder "
        "(HF_HUB_OFFLINE=1 leaves the hub out)"
    )

"""The Hugging Face hub: whether it can be reached, asked once and briefly. Its own clients try for a minute."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from functools import cache

from huggingface_hub import constants

SECONDS = 3  # until the hub counts as out of reach


def local_only() -> bool:
    """Whether nothing but files that were fetched before can be had."""
    return constants.HF_HUB_OFFLINE or bool(out_of_reach(constants.ENDPOINT))


@cache  # a slow hub costs its seconds once in a process, not at every load
def out_of_reach(endpoint: str) -> str:
    """Why a hub does not answer; nothing if it does, whatever it says."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # its clients may trust other certificates
            return ""
        return f"timed out after {SECONDS} s" if isinstance(reason, TimeoutError) else "cannot be reached (offline?)"


def offline_message() -> str:
    """Why something is not there, and what to do."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it was not fetched before; give a local folder, or unset it"
    return (
        f"{constants.ENDPOINT} {out_of_reach(constants.ENDPOINT)}, and it was not fetched before; give a local folder, "
        "or try again in a new process (HF_HUB_OFFLINE=1 leaves the hub out)"
    )

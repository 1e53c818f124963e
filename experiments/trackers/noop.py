"""No tracker."""

from __future__ import annotations

from typing import Any, ClassVar


class Noop:
    """Forgets everything; see `trackers.base.Tracker`."""

    wants_images: ClassVar[bool] = False

    def start(self, *_: Any) -> None:
        """Nothing."""

    log = table = histogram = image = artifact = finish = start

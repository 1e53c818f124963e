"""Medusa with heads that know what was drafted before them: Ankner et al., Hydra, arXiv 2402.05109."""

from __future__ import annotations

from typing import ClassVar

from specdec.drafters.hydra_head import HydraHead
from specdec.drafters.medusa import Medusa


class Hydra(Medusa):
    """As Medusa, with other heads: see `hydra_head`."""

    kind: ClassVar[type[HydraHead]] = HydraHead

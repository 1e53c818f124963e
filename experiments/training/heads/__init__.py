"""`specdec train drafter=...`: drafters that are trained against their target, on text that the target wrote."""

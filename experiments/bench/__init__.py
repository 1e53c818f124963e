"""`specdec bench`: the kernels against their rivals. Needs torch, rich and matplotlib, neither Hydra nor a tracker."""

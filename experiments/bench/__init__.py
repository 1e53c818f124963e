"""`specdec bench`: what kernels, steps and rules cost. Needs torch, rich and matplotlib, neither Hydra nor a tracker."""

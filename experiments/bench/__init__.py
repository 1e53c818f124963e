"""`specdec bench`: what kernels, steps and rules cost. Needs torch, rich, matplotlib; neither Hydra nor a tracker."""

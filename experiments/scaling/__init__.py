"""How the cost of a step grows with context, tree, batch and vocabulary: `specdec run experiment=scaling`."""

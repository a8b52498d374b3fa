"""Two sides, one machine, one run: what a step, a commit, a token and a byte cost here and there."""

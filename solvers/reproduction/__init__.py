"""The paper's evaluation, run again in the simulator: its figures, the set-ups, the fit, the effects."""

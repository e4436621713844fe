"""Documents, and the generator of those parts that come from the code."""

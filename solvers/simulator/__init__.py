"""The simulator: what the static models cannot say, event by event."""

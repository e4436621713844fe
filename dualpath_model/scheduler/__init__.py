"""The scheduler: decisions as functions over arrays, the stateful reference, the policies."""

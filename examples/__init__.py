"""Shipped scenarios: ``dualpath plan NAME`` finds them here wherever the package is installed."""

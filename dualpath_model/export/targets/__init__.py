"""One module a target; :mod:`dualpath_model.export.registry` finds them."""

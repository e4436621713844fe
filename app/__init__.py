"""Where people meet the toolkit: command line, figures, reports."""

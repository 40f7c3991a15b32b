"""Every metric and the logging set-up."""

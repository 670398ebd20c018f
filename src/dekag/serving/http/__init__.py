"""What every service has: settings, errors, limits, authentication, logs, metrics, and the server."""

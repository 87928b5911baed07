"""Real proxies before the service, what they do to calls whose answers get lost, and how that is counted."""

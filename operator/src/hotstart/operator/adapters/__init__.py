"""The outside world behind the Protocols of reconcile.ports: one client library a file."""

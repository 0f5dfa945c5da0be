"""Decisions of the operator: pure functions of what was observed, the spec and `now`. No client library, no clock."""

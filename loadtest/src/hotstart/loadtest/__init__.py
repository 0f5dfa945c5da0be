"""Load tester: open-loop arrivals for a completion server, with latencies counted from the intended send times."""

"""What all programs of Hotstart share: names, messages of the exchange, signing, server and client.

The exchange is the only way in which routers, pod agents and builders hear from the operator: it asks over HTTP,
they answer. Nothing here imports another package of Hotstart.
"""

"""`hotstart-engine`: what the operator and the builder do with engines, on a laptop and without Kubernetes."""

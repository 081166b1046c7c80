"""The public face: a guarded gRPC edge, standard services, HTTP and the page."""

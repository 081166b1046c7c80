"""TorchServe as an engine: configured, started, proven, called and drained.

with Server(ServerConfig(store=Path("model_store"))) as server:  # proven, or an exception
    print(server.inference_address, server.ready)
    server.serve_forever()
"""

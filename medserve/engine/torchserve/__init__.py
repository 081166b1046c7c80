"""TorchServe as an engine: configured, started, proven, watched, drained.

with Server(ServerConfig(store=Path("model_store"))) as server:  # proven, or an exception
    print(server.inference_address, server.ready)
    server.serve_forever()
"""

from medserve.engine.torchserve.lifecycle import Server, ServerConfig

__all__ = ["Server", "ServerConfig"]

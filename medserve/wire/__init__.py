"""Generated gRPC code of the contracts in `protos/`; made by `scripts/protos.py`, never edited."""
